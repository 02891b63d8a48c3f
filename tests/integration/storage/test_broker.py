import socket
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from kombu import Connection

from contracts.errors import BrokerUnavailable, ConfigurationError
from stack.layout import Layout
from stack.processes import Child
from stack.valkey import Valkey
from storage.broker import TICKET, Tickets, celery_app, queue

_pools = (f"pool{i}" for i in count())


@pytest.fixture
def pool() -> str:
    """A queue that no other test has used: RabbitMQ is one for the session."""
    return next(_pools)


@pytest.fixture(params=["valkey", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("broker_url" if request.param == "valkey" else "rabbitmq_url"))


@pytest.fixture
def tickets(url: str) -> Iterator[Tickets]:
    with Tickets(url) as tickets:
        yield tickets


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else takes meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_what_is_published_waits(tickets: Tickets, pool: str) -> None:
    assert tickets.depth(pool) == 0
    tickets.publish(pool, 3)
    tickets.publish(pool, 0)
    tickets.publish(f"{pool}-other", 1)
    assert tickets.depth(pool) == 3
    assert tickets.depth(f"{pool}-other") == 1


def test_a_ticket_names_no_work(tickets: Tickets, url: str, pool: str) -> None:
    tickets.publish(pool, 1)
    with Connection(url) as connection, connection.channel() as channel:
        message = queue(pool)(channel).get(no_ack=True)
    assert message.headers["task"] == TICKET
    assert message.decode()[:2] == [[pool], {}]
    assert message.content_type == "application/json"


@pytest.mark.parametrize(
    ("waiting", "claimable", "window", "published"),
    [(0, 0, 4, 0), (0, 3, 4, 3), (0, 100, 4, 4), (1, 100, 4, 3), (2, 2, 4, 0), (3, 1, 4, 0), (6, 100, 4, 0)],
)
def test_a_top_up_is_bounded(
    tickets: Tickets, pool: str, waiting: int, claimable: int, window: int, published: int
) -> None:
    tickets.publish(pool, waiting)
    assert tickets.top_up(pool, claimable, window) == published
    assert tickets.depth(pool) == waiting + published
    assert tickets.top_up(pool, claimable, window) == 0


@pytest.mark.parametrize("scheme", ["redis", "rediss", "amqp", "amqps", "pyamqp"])
def test_a_broker_that_is_not_there_is_said_soon_and_without_the_password(scheme: str, unused_port: int) -> None:
    with Tickets(f"{scheme}://me:secret@127.0.0.1:{unused_port}") as tickets:
        for call in (
            lambda: tickets.publish("default", 1),
            lambda: tickets.depth("default"),
            lambda: tickets.top_up("default", 1, 1),
        ):
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable, match=str(unused_port)) as raised:
                call()
            assert "secret" not in str(raised.value)
            assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "url",
    [
        *("kafka://host", "valkey://host", "memory://", "host:6379", "", "redis://host:port"),
        *("redis://host/notadb", "rediss://host/0/1", "redis+socket:///run/valkey.sock?virtual_host=one"),
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="BATCHMILL_BROKER_URL"):
        Tickets(url)


class TestRecovery:
    """On a Valkey of its own, which may be stopped."""

    @pytest.fixture
    def valkey(self, tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator["OwnValkey"]:
        valkey = OwnValkey(home / tmp_path_factory.mktemp("v").name)
        yield valkey
        valkey.stop()

    def test_after_a_restart(self, valkey: "OwnValkey") -> None:
        with Tickets(valkey.url) as tickets:
            tickets.publish("default", 2)
            valkey.stop()
            for call in (lambda: tickets.publish("default", 1), lambda: tickets.depth("default")):
                began = time.monotonic()
                with pytest.raises(BrokerUnavailable):
                    call()
                assert time.monotonic() - began < 5
            valkey.start()
            tickets.publish("default", 1)
            assert tickets.depth("default") == 3  # it was told to keep what it had

    def test_after_its_connections_were_cut(self, valkey: "OwnValkey") -> None:
        with Tickets(valkey.url) as tickets, valkey.client() as client:
            for expected in (2, 4, 6):
                tickets.publish("default", 2)
                assert tickets.depth("default") == expected
                assert client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") > 0

    def test_one_that_refuses_is_not_an_unknown_error(self, valkey: "OwnValkey") -> None:
        with Tickets(valkey.url) as tickets, valkey.client() as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(BrokerUnavailable, match="maxmemory"):
                tickets.publish("default", 1)
            client.config_set("maxmemory", 0)
            client.set("batchmill.default", "taken by someone else")
            with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
                tickets.depth("default")


class OwnValkey:
    def __init__(self, home: Path) -> None:
        self._layout = Layout.of(home).prepare()
        self._valkey = Valkey(self._layout)
        self.url = self._valkey.url
        self.start()

    def start(self) -> None:
        self._child = Child(self._valkey.program, self._layout)
        self._child.wait_until(self._valkey.listens, 20, lambda: False)

    def stop(self) -> None:
        self._child.stop(5)

    def client(self) -> "redis.Redis[bytes]":
        return redis.Redis(unix_socket_path=urlsplit(self.url).path)


def test_rabbitmq_confirms_what_is_published(rabbitmq_url: str) -> None:
    with celery_app(rabbitmq_url).connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
        assert connection.connection.confirm_publish
