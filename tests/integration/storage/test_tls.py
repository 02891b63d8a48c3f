"""TLS to Postgres and to the broker: verified wherever it is spoken."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import make_url, text

from contracts.errors import BatchmillError, BrokerUnavailable, ConfigurationError, DatabaseUnavailable
from contracts.settings import load_settings
from stack.sockets import POSTGRES_SOCKET
from storage.broker import Tickets
from storage.database import Database
from tests.tls import SSL_REQUEST, Authority, terminating


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def others(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "others")


def broker_settings(url: str, **settings: Any) -> str:
    return str(load_settings(database_url="postgresql:///unused", broker_url=url, **settings).broker_url)


def one_line(error: pytest.ExceptionInfo[BatchmillError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(params=["rediss", "amqps"])
def broker(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A scheme, and where its server listens in clear."""
    if request.param == "rediss":
        return "rediss://localhost:{port}/15", urlsplit(request.getfixturevalue("addresses").broker_url).path
    plain = urlsplit(request.getfixturevalue("rabbitmq_url"))
    address = plain.netloc.rpartition("@")[0]
    return f"amqps://{address}@localhost:{{port}}{plain.path}", (plain.hostname, plain.port)


def test_a_broker_is_verified(broker: tuple[str, Any], ours: Authority, others: Authority) -> None:
    url, target = broker
    with terminating(ours.context("localhost"), target) as port:
        with Tickets(broker_settings(url.format(port=port), broker_ca=str(ours.ca))) as tickets:
            before = tickets.depth("tls")
            tickets.publish("tls", 2)
            assert tickets.depth("tls") == before + 2
        # One that nobody vouches for, which is so for those that the system trusts as well.
        for settings in ({"broker_ca": str(others.ca)}, {"broker_ca": "system"}, {}):
            with Tickets(broker_settings(url.format(port=port), **settings)) as tickets:
                with pytest.raises(BrokerUnavailable, match="certificate verify failed") as refused:
                    tickets.depth("tls")
                one_line(refused)
    # The right authority, and another server's name.
    with (
        terminating(ours.context("elsewhere.example"), target) as port,
        Tickets(broker_settings(url.format(port=port), broker_ca=str(ours.ca))) as tickets,
        pytest.raises(BrokerUnavailable, match="not valid for 'localhost'"),
    ):
        tickets.depth("tls")


def test_a_broker_may_ask_who_we_are(broker: tuple[str, Any], ours: Authority) -> None:
    url, target = broker
    certificate, key = ours.write("client.example")
    with terminating(ours.context("localhost", client=True), target) as port:
        shown = {"broker_ca": str(ours.ca), "broker_certificate": certificate, "broker_key": key}
        with Tickets(broker_settings(url.format(port=port), **shown)) as tickets:
            assert tickets.depth("tls") >= 0
        nobody = broker_settings(url.format(port=port), broker_ca=str(ours.ca))
        with Tickets(nobody) as tickets, pytest.raises(BrokerUnavailable):
            tickets.depth("tls")


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_cert_reqs=optional", "ssl_check_hostname=false"])
def test_verification_cannot_be_turned_off(option: str) -> None:
    for scheme in ("rediss", "amqps"):
        with pytest.raises(ConfigurationError, match="the broker is always verified"):
            Tickets(f"{scheme}://localhost/?{option}")


def test_postgres_is_verified(database_url: str, ours: Authority, others: Authority) -> None:
    parts = make_url(database_url)
    target = f"{parts.query['host']}/{POSTGRES_SOCKET}"
    with terminating(ours.context("localhost"), target, postgres=True) as port:
        url = f"postgresql://batchmill@localhost:{port}/{parts.database}?gssencmode=disable"
        with Database(_secured(url, str(ours.ca))) as database, database.transaction() as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
        for address, ca, reason in (
            (url, str(others.ca), "certificate verify failed"),
            (url, "system", "certificate verify failed"),
            (url.replace("localhost", "127.0.0.1"), str(ours.ca), "does not match host name"),
        ):
            with Database(_secured(address, ca)) as database:
                with pytest.raises(DatabaseUnavailable, match=reason) as refused, database.transaction():
                    pass
                one_line(refused)


def test_a_postgres_without_tls_is_refused_once_it_is_asked_for(ours: Authority) -> None:
    def says_no(listener: socket.socket) -> None:
        with listener.accept()[0] as client:
            assert client.recv(8, socket.MSG_WAITALL) == SSL_REQUEST
            client.sendall(b"N")
            assert client.recv(1) == b""  # no password, no query

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        served = thread.submit(says_no, listener)
        url = f"postgresql://me:secret@localhost:{listener.getsockname()[1]}/name?gssencmode=disable"
        with (
            Database(_secured(url, str(ours.ca))) as database,
            pytest.raises(DatabaseUnavailable, match="does not support SSL"),
            database.transaction(),
        ):
            pass
        served.result(10)


def _secured(url: str, ca: str) -> str:
    return str(load_settings(database_url=url, broker_url="redis://unused", database_ca=ca).database_url)
