"""Where webhooks may go: the URLs that are taken, and the addresses that may be connected to. Pure.

A URL is taken in its plainest form alone, so that no two parsers can read it differently. That is a convenience: what
protects is `refusal`, which judges each address that a name resolves to just before it is connected to.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from contracts.errors import RefusedUrl

Network: TypeAlias = IPv4Network | IPv6Network

MAX_URL = 2048
"""Characters of a callback URL."""
_DEFAULT_PORTS = {"https": 443, "http": 80}

# Path and query hold the characters of RFC 3986 and no others. There is no fragment, which is never sent.
_PATH = r"[A-Za-z0-9\-._~!$&'()*+,;=:@%/]"
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{{1,5}}))?"
    rf"(?P<path>/{_PATH}*)?(?P<query>\?(?:{_PATH}|\?)*)?",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label it makes a name an IPv4 address (WHATWG URL, 3.5)

_METADATA = frozenset(
    ip_address(address)
    for address in (
        *("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"),
        *("100.100.100.200", "168.63.129.16", "192.0.0.192"),  # Alibaba, Azure, Oracle
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_UNICAST = IPv6Network("2000::/3")
# Beside what `is_global` says, whose answers differ between releases of Python.
_NOT_PUBLIC = [
    ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # Teredo lies in the first, 6to4 is the third
    )
]
_LOOPBACK = (ip_address("127.0.0.1"), ip_address("::1"))


@dataclass(frozen=True)
class Callback:
    """A URL that was taken apart; equal URLs are equal here."""

    scheme: str
    host: str
    """Lower case; an IPv6 address without its brackets."""
    port: int
    path: str
    query: str
    """With its `?`, or empty."""

    @property
    def base(self) -> str:
        """The URL without its query: what an endpoint is found by, and what may be shown."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"

    @property
    def url(self) -> str:
        """The URL in its one normal form."""
        return self.base + self.query

    @property
    def address(self) -> IPv4Address | IPv6Address | None:
        """The host, where it is an address and no name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def parse(url: str) -> Callback:
    """Take a callback URL apart.

    Raises:
        RefusedUrl: It is none, or is not written plainly; the message quotes neither credentials nor query.
    """
    if not isinstance(url, str) or len(url) > MAX_URL:
        raise RefusedUrl(f"a callback URL is a text of at most {MAX_URL:,} characters")
    found = _URL.fullmatch(url)
    if found is None:
        raise RefusedUrl(_what_is_wrong(url))
    scheme = found["scheme"].lower()
    port = int(found["port"] or _DEFAULT_PORTS[scheme])
    if not 0 < port < 65536:
        raise RefusedUrl(f"callback URL: {port} is no port")
    return Callback(scheme, _host(found["host"].lower()), port, found["path"] or "/", found["query"] or "")


def check(callback: Callback, allow: Iterable[Network] = ()) -> None:
    """Refuse what can be told without asking a resolver.

    Args:
        callback: The URL.
        allow: Networks that are permitted though they are not public.

    Raises:
        RefusedUrl: No webhook would ever be sent there.
    """
    networks = tuple(allow)
    plain = callback.scheme == "http"
    if (address := callback.address) is not None:
        if reason := refusal(str(address), networks, public=not plain):
            raise RefusedUrl(f"callback URL: {reason}")
    elif callback.host == "localhost" or callback.host.endswith(".localhost"):
        if not any(address in network for address in _LOOPBACK for network in networks):
            raise RefusedUrl(f"callback URL: {callback.host} is this machine; {_ALLOW}")
    elif plain and not networks:
        raise RefusedUrl(f"callback URL: write https://; plain http goes to private networks alone, and {_ALLOW}")


def refusal(address: str, allow: Iterable[Network] = (), *, public: bool = True) -> str | None:
    """Why an address is not connected to; None where it may be.

    An IPv4 address inside an IPv6 one (mapped, NAT64) is judged as what it is. Metadata services, multicast and the
    unspecified address are refused even where a network that holds them is permitted.

    Args:
        address: As a resolver gives it.
        allow: Networks that are permitted though they are not public.
        public: Whether public addresses will do.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return f"{address!r} is no address"
    if isinstance(found, IPv6Address):
        if found.scope_id is not None:
            return f"{found} belongs to one link"
        found = _within(found)
    if found in _METADATA:
        return f"{address} serves a cloud's metadata"
    if found.is_multicast or found.is_unspecified or found == IPv4Address("255.255.255.255"):
        return f"{address} is no one host's address"
    if any(found in network for network in allow):
        return None
    if not _is_public(found):
        return f"{address} is not public; {_ALLOW}"
    return None if public else f"{address} is public, where plain http is not used: write https://"


_ALLOW = "BATCHMILL_WEBHOOK_ALLOW_NETWORKS names the private networks that are permitted"


def _within(address: IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that packets to it would reach, where there is one."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _UNICAST:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


def _host(host: str) -> str:
    """A host in its normal form.

    Raises:
        RefusedUrl: It is neither a name nor an address in the usual notation.
    """
    try:
        if host.startswith("["):
            return str(IPv6Address(host[1:-1]))
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            return str(IPv4Address(host))
    except ValueError:
        raise RefusedUrl(f"callback URL: {host} is no address in the usual notation") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise RefusedUrl(f"callback URL: {host:.80} is no host name")
    return host


def _what_is_wrong(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _DEFAULT_PORTS:
        return "a callback URL begins with https://"
    if "@" in re.split(r"[/?#\\]", rest, maxsplit=1)[0]:
        return "callback URL: leave out user and password; requests are signed instead"
    if "#" in rest:
        return "callback URL: leave out the fragment, which is never sent"
    if not url.isascii():
        return "callback URL: write an international name as xn--…, and other characters as %XX"
    return "callback URL: write https://host/path, with no spaces or unusual characters"
