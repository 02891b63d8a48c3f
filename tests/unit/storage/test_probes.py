import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry

from contracts.errors import ConfigurationError, DatabaseUnavailable
from contracts.settings import Settings
from storage import schema
from storage.health import Health, Pulse, Stage
from storage.probes import serving


class Answering:
    """A database as far as a probe asks it."""

    def __init__(self) -> None:
        self.away = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self.away:
            raise DatabaseUnavailable("away")
        yield


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Answering:
    monkeypatch.setattr(schema, "check", lambda _: None)
    return Answering()


@pytest.fixture
def health(database: Answering) -> Health:
    return Health(database, ("vital",))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_it_is_ready_while_it_works_and_the_database_answers(health: Health, database: Answering) -> None:
    port = free_port()
    with serving(Settings(metrics_port=port), CollectorRegistry(), health):
        assert get(port, "/readyz") == (503, {"ok": False, "stage": "starting", "trouble": None})
        health.stage = Stage.WORKING
        assert get(port, "/readyz")[0] == 200
        database.away = True
        assert get(port, "/readyz") == (503, {"ok": False, "stage": "working", "trouble": "database_unavailable"})
        database.away = False
        health.stage = Stage.LEAVING
        assert get(port, "/readyz")[0] == 503
        assert get(port, "/nothing") == (404, {"paths": ["/metrics", "/healthz", "/readyz"]})
        assert get(port, "/readyz", "POST")[0] == 405
    with pytest.raises(urllib.error.URLError):
        get(port, "/readyz")


def test_it_is_not_alive_without_its_threads(health: Health) -> None:
    assert health.alive().good, "a process that is starting has none yet"
    health.stage = Stage.WORKING
    assert health.alive().details["dead_threads"] == ["vital"]
    assert not health.alive().good
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, name="vital")
    thread.start()
    try:
        assert health.alive().good
    finally:
        leave.set()
        thread.join()


def test_it_is_not_alive_when_a_pass_does_not_end(health: Health) -> None:
    busy = 5.0
    health.watch(lambda: busy, 10.0)
    assert health.alive().good
    busy = 11.0
    assert not health.alive().good


def test_beat_is_healthy_for_three_periods_after_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pulse = Pulse(5.0)

    def seen() -> tuple[bool, bool, object]:
        return pulse.alive().good, pulse.ready().good, pulse.alive().details["last_tick_seconds"]

    assert seen() == (True, False, None), "the first tick has as long"
    now = 115.1
    assert seen() == (False, False, None)
    pulse.beat()
    now = 130.0
    assert seen() == (True, True, 14.9)
    now = 130.2
    assert seen() == (False, False, 15.1)


def test_without_a_port_nothing_listens(health: Health) -> None:
    with serving(Settings(), CollectorRegistry(), health):
        assert "probes" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(("host", "reason"), [("127.0.0.1", "in use"), ("203.0.113.1", "assign")])
def test_where_it_cannot_listen_it_says_so(health: Health, host: str, reason: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings = Settings(metrics_host=host, metrics_port=port)
        with (
            pytest.raises(
                ConfigurationError, match=f"BATCHMILL_METRICS_PORT={port}: cannot listen on {host}: .*{reason}"
            ),
            serving(settings, CollectorRegistry(), health),
        ):
            pass
