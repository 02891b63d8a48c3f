"""No secret, input or output is logged or sent through the broker: canaries are put in, and looked for."""

import base64
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import redis
from cryptography.fernet import Fernet

from stack.state import StackAddresses
from tests.conftest import Mill, wait_until
from tests.tls import Authority, terminating

PASSWORD, BROKER_PASSWORD = "canary-database-password", "canary-broker-password"
KEY = Fernet.generate_key().decode()
INPUT, FAILING, ENDLESS, UNFIT, CUSTOM_ID = (
    f"canary-{name}" for name in ("input", "failing", "not-a-number", "too-long", "custom-id")
)
RECEIVER = "https://127.0.0.1:1/hook"  # nobody listens there
BODY = re.compile(rb'"body": "([^"]+)"')
NUMBER = re.compile(r"0\.\d{6,}")


@pytest.fixture
def secured(
    mill: Mill, addresses: StackAddresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Mill, "redis.Redis[bytes]"]]:
    """Passwords in both URLs, a certificate between us and the broker; and the broker as it is in truth."""
    socket = urlsplit(addresses.broker_url).path
    monkeypatch.setenv("BATCHMILL_SECRET_KEY", KEY)
    monkeypatch.setenv("BATCHMILL_WEBHOOK_ALLOW_NETWORKS", "127.0.0.0/8")
    ours = Authority(tmp_path, "ours")
    with terminating(ours.context("localhost"), socket) as port, redis.Redis(unix_socket_path=socket, db=15) as broker:
        broker.flushdb()
        database = mill.environment["BATCHMILL_DATABASE_URL"]
        mill.environment |= {
            "BATCHMILL_DATABASE_URL": database.replace("batchmill@", f"batchmill:{PASSWORD}@", 1),
            "BATCHMILL_BROKER_URL": f"rediss://default:{BROKER_PASSWORD}@localhost:{port}/15",
            "BATCHMILL_BROKER_CA": str(ours.ca),
        }
        monkeypatch.setenv("BATCHMILL_BROKER_CA", str(ours.ca))
        yield mill, broker
        mill.close()


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_canary_is_heard(secured: tuple[Mill, "redis.Redis[bytes]"], form: str) -> None:
    mill, broker = secured
    mill.environment |= {
        "BATCHMILL_LOG_FORMAT": form,
        "BATCHMILL_LOG_LEVEL": "debug",
        "BATCHMILL_METRICS_PORT": "0",
    }
    canaries = [PASSWORD, BROKER_PASSWORD, KEY, INPUT, FAILING, ENDLESS, UNFIT, CUSTOM_ID]
    with mill.client() as client, broker.pubsub() as events:
        events.psubscribe("*")
        secret = client.webhooks.add(RECEIVER).secret
        canaries.append(secret)
        client.models.add("labels", f"fake:?fail={FAILING}&nan={ENDLESS}&limit=50", task="classify")
        texts = [(f"{CUSTOM_ID}-{n}", f"{word} {n}") for n, word in enumerate([INPUT] * 200 + [FAILING, ENDLESS] * 5)]
        job = client.submit(
            "labels", [*texts, (CUSTOM_ID, UNFIT * 100)], metadata={"note": INPUT}, callback_url=RECEIVER
        )
        raw = raw_messages(broker)
        assert b"batchmill.ticket" in raw
        running = [start(mill, program) for program in ("worker", "worker.beat", "worker.webhooks")]
        job.wait(timeout=300)
        assert job.counts.failed == 10
        wait_until(lambda: client.webhooks.deliveries()[0].last_error, 30)
        wait_until(lambda: "batchmill.tick" in mill.log(running[0]), 30)
        outputs = [result.output for result in job.results() if result.output is not None]
        raw += raw_messages(broker)
        worker, deliverer = (metrics_of(mill.log(process)) for process in (running[0], running[2]))
        assert b'batchmill_inputs_total{model="labels@1",outcome="failed",task="classify"} 10.0' in worker
        assert b'batchmill_webhook_attempts_total{outcome="pending"}' in deliverer
        raw += worker + deliverer
        for process in running:
            mill.stop(process)
        seen = published(events)
        assert all(word in seen for word in (b"task-succeeded", b"labels@1", str(job.id).encode()))
        heard = raw + seen + "".join(mill.log(process) for process in running).encode()
    assert len(heard) > 20_000
    canaries += set(NUMBER.findall(repr(outputs)))
    assert len(canaries) > 200
    found = [canary for canary in canaries if canary.encode() in heard]
    assert not found, [line for line in heard.splitlines() if any(canary.encode() in line for canary in found)][:5]


def metrics_of(log: str) -> bytes:
    [address] = set(re.findall(r"http://[\d.:]+/metrics", log))
    with urlopen(address, timeout=300) as answer:
        content: bytes = answer.read()
    return content


def start(mill: Mill, program: str) -> subprocess.Popen[bytes]:
    home = mill.folder / program
    home.mkdir()
    return mill._start("tests.noisy", home, NOISY=program)


def published(events: Any) -> bytes:
    """What went out to whoever listens, as Flower does: the text of all events."""
    heard = []
    while (message := events.get_message(timeout=0.2)) is not None:
        if message["type"] == "psubscribe":
            continue
        heard += [message["data"], *(base64.b64decode(body) for body in BODY.findall(message["data"]))]
    return b"\n".join(heard)


def raw_messages(broker: "redis.Redis[bytes]") -> bytes:
    """Everything that the broker holds, as it holds it: messages are base64 within JSON."""
    values = []
    for key in broker.scan_iter():
        match broker.type(key):
            case b"list":
                values += broker.lrange(key, 0, -1)
            case b"hash":
                values += broker.hvals(key)
            case b"string":
                values.append(broker.get(key) or b"")
    bodies = [base64.b64decode(body) for value in values for body in BODY.findall(value)]
    return b"\n".join([*values, *bodies])
