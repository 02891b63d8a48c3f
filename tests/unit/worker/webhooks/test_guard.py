"""No forged URL leads to a connection, whichever way its address is written and however its name resolves."""

import asyncio
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, ip_network
from typing import Any
from uuid import UUID, uuid4

import httpcore2
import pytest

from storage.deliveries import Claim
from storage.secrets import Keyring, new_secret
from tests.receiver import KEY, LOOPBACK
from worker.webhooks import guard
from worker.webhooks.guard import GuardedTransport
from worker.webhooks.sender import Sender
from worker.webhooks.verdict import Answer

PUBLIC = "93.184.216.34"
SECRET = Keyring([KEY]).encrypt(new_secret())

TARGETS = (
    *("127.0.0.1", "127.8.9.10", "0.0.0.0", "10.0.0.5", "172.16.3.4", "192.168.1.1", "169.254.169.254"),
    *("169.254.1.1", "100.64.0.1", "192.0.0.192", "198.18.0.1", "224.0.0.1", "255.255.255.255", "168.63.129.16"),
)
ADDRESSES_6 = (
    *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fd12:3456::1", "fec0::1", "ff02::1", "2001:db8::1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "64:ff9b:1::7f00:1", "100::1", "3fff::1", "fd20:ce::254"),
)
ODD = (
    *("https://user:secret@127.0.0.1:{port}/", "https://example.com@127.0.0.1:{port}/"),
    *("https://127.0.0.1:{port}#@example.com/", "https://127.0.0.1:{port}\\@example.com/"),
    *("https://example.com\\@127.0.0.1:{port}/", "https://127.0.0.1\t:{port}/", "https://127.0.0.1\n:{port}/"),
    *(" https://127.0.0.1:{port}/", "https:// 127.0.0.1:{port}/", "https://127.0.0.1%00.example.com:{port}/"),
    *("https://%31%32%37.0.0.1:{port}/", "https://１２７.0.0.1:{port}/", "https://①②⑦.0.0.1:{port}/"),
    *("https://127。0。0。1:{port}/", "https://localhost:{port}/", "https://LOCALHOST:{port}/"),
    *("https://localhost.:{port}/", "https://127.0.0.1.:{port}/", "https://ⓛocalhost:{port}/"),
    *("https:127.0.0.1:{port}/", "https:///127.0.0.1:{port}/", "//127.0.0.1:{port}/", "127.0.0.1:{port}"),
    *("file:///etc/passwd", "gopher://127.0.0.1:{port}/_x", "ftp://127.0.0.1:{port}/", "dict://127.0.0.1:{port}/x"),
    *("javascript:alert(1)", "unix:///tmp/socket", "https://[::1%25lo]:{port}/", "https://[fe80::1%25lo]:{port}/"),
    *("https://[::1:{port}/", "https://[]:{port}/", "https://:{port}/", "https://127.0.0.1:{port}:80/", "", "https://"),
    *("https://127.0.0.1:{port}\r\nHost: example.com/", "https://127.0.0.1:99999/", "https://[127.0.0.1]:{port}/"),
)


def spellings(address: str) -> Iterator[str]:
    """An IPv4 address in the ways that some resolver or parser takes it."""
    a, b, c, d = IPv4Address(address).packed
    number = int(IPv4Address(address))
    yield from (address, str(number), hex(number), oct(number).replace("0o", "0"))
    yield f"0{a:o}.0{b:o}.0{c:o}.0{d:o}"
    yield f"{a:#x}.{b:#x}.{c:#x}.{d:#x}"
    yield f"{a:03}.{b:03}.{c:03}.{d:03}"
    yield f"{a}.{b * 65536 + c * 256 + d}"
    yield f"{a}.{b}.{c * 256 + d}"
    yield f"{a:#x}.{b}.0{c * 256 + d:o}"
    yield f"{number + 2**32}"
    for prefix in ("::ffff:", "64:ff9b::", "::", "::ffff:0:", "64:ff9b:1::"):
        yield f"[{prefix}{address}]"
    yield f"[2002:{a * 256 + b:x}:{c * 256 + d:x}::1]"


HOSTS = [host for target in TARGETS for host in spellings(target)] + [f"[{address}]" for address in ADDRESSES_6]
NAMES: dict[str, Sequence[str]] = {
    # A name for each address alone, and beside a public one, before it and after it.
    **{f"alone-{n}.example": [address] for n, address in enumerate(TARGETS + ADDRESSES_6)},
    **{f"last-{n}.example": [PUBLIC, address] for n, address in enumerate(TARGETS + ADDRESSES_6)},
    **{f"first-{n}.example": [address, PUBLIC] for n, address in enumerate(TARGETS + ADDRESSES_6)},
    "mapped.example": ["::ffff:127.0.0.1"],
    "nat64.example": ["64:ff9b::127.0.0.1"],
    "nonsense.example": ["127.1"],
    "none.example": [],
}


async def names_and_numbers(host: str, port: int) -> Sequence[str]:
    """The system's resolver for anything but the names above, of which no machine knows."""
    return NAMES[host] if host in NAMES else await guard.resolve(host, port)


class Dial(httpcore2.AsyncNetworkBackend):
    """Counts connections, and makes none."""

    def __init__(self) -> None:
        self.dialled: list[tuple[str, int]] = []

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        self.dialled.append((host, port))
        raise httpcore2.ConnectError("nobody is there")


def claim(url: str) -> Claim:
    now = datetime.now(UTC)
    return Claim(uuid4(), UUID(int=0), 1, 1, url, "job.completed", {"type": "x"}, (SECRET,), now)


def attempts(urls: Sequence[str], **transport: Any) -> list[Answer]:
    async def send() -> list[Answer]:
        sender = Sender(GuardedTransport(seconds=5, **transport), Keyring([KEY]), 5)
        try:
            return [await sender.send(claim(url)) for url in urls]
        finally:
            await sender.close()

    return asyncio.run(send())


def test_no_forged_url_is_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        urls = [f"{scheme}://{host}:{port}/" for scheme in ("https", "http") for host in [*HOSTS, *NAMES]]
        urls += [url.replace("{port}", str(port)) for url in ODD]
        assert len(set(urls)) > 500

        dial = Dial()
        answers = attempts(urls, resolve=names_and_numbers, dial=dial)
        assert not dial.dialled
        assert [url for url, answer in zip(urls, answers, strict=True) if answer.good] == []
        assert all(answer.error and answer.status is None for answer in answers)

        # And with the real way of connecting: nobody knocks.
        attempts([url for url in urls if ".example" not in url], resolve=names_and_numbers)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_the_same_listener_is_reached_once_its_network_is_permitted() -> None:
    """What the test above rests on: its connections would be seen."""
    dial = Dial()
    attempts(["http://127.0.0.1:8080/", "https://127.0.0.1:8080/"], allow=LOOPBACK, dial=dial)
    assert dial.dialled == [("127.0.0.1", 8080)] * 2


def test_a_name_that_changes_its_address_is_dialled_where_it_was_checked() -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"], [PUBLIC]])
    asked = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        return next(answers)

    dial = Dial()
    found = attempts(["https://rebind.example/"] * 3, resolve=rebinding, dial=dial)
    assert asked == [("rebind.example", 443)] * 3  # once an attempt
    assert dial.dialled == [(PUBLIC, 443)] * 2  # never the name
    assert "127.0.0.1 is not public" in str(found[1].error)


def test_every_address_is_tried_in_turn() -> None:
    async def both(host: str, port: int) -> Sequence[str]:
        return ["2606:4700:4700::1111", PUBLIC]

    dial = Dial()
    (answer,) = attempts(["https://two.example/"], resolve=both, dial=dial)
    assert dial.dialled == [("2606:4700:4700::1111", 443), (PUBLIC, 443)]
    assert answer.error == "ConnectError: nobody is there"


def test_plain_http_goes_to_permitted_networks_alone() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["10.0.0.1"] if host == "inside.example" else [PUBLIC]

    dial = Dial()
    urls = ["http://inside.example/", "http://outside.example/", "https://inside.example/", "https://outside.example/"]
    found = attempts(urls, resolve=resolve, dial=dial, allow=[ip_network("10.0.0.0/8")])
    assert dial.dialled == [("10.0.0.1", 80), ("10.0.0.1", 443), (PUBLIC, 443)]
    assert "plain http is not used" in str(found[1].error)


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        dial = Dial()
        attempts([f"https://{PUBLIC}/"], dial=dial)
        assert dial.dialled == [(PUBLIC, 443)]


def test_a_name_that_no_resolver_knows_is_a_failed_attempt() -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    (answer,) = attempts(["https://unknown.example/"], resolve=unknown, dial=Dial())
    assert answer.error == "gaierror: [Errno -2] Name or service not known"


def test_the_systems_resolver_is_asked_in_a_thread() -> None:
    async def ask() -> list[Sequence[str]]:
        return [await guard.resolve(host, 443) for host in ("localhost", "10.0.0.1", "::1")]

    names, four, six = asyncio.run(ask())
    assert "127.0.0.1" in names
    assert (list(four), list(six)) == (["10.0.0.1"], ["::1"])
    with pytest.raises(OSError, match="Name or service|No address|failure|invalid"):
        asyncio.run(guard.resolve("no-such-host.invalid", 443))
