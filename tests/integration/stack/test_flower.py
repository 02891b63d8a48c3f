"""Flower as the embedded stack serves it: what it shows, and to whom."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from contracts.settings import Settings
from producer import Client
from stack import flower
from stack.embedded import ensure, status
from stack.flower import USER, password
from stack.layout import Layout
from stack.state import ChildState
from tests.jobs import query

Eventually = Callable[..., None]

PATHS = (
    *("/", "/workers", "/worker/any", "/tasks", "/tasks/datatable", "/task/any", "/broker", "/metrics", "/login"),
    *("/logout", "/nothing", "/api/workers", "/api/tasks", "/api/queues/length", "/static/js/flower.js"),
)
CANARY = "canary-input"


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home, tick_seconds=1)


def child(settings: Settings) -> ChildState:
    return next(child for child in status(settings).children if child.name == flower.NAME)


@pytest.fixture
def page(settings: Settings) -> Iterator[httpx2.Client]:
    """Its pages for whoever knows the password. It listens from the start, so that a request waits until it is up."""
    ensure(settings)
    address = child(settings).address
    assert address is not None
    with httpx2.Client(base_url=address, auth=(USER, password(settings)), timeout=300) as client:
        yield client


def tickets(page: httpx2.Client, job_id: str) -> list[dict[str, Any]]:
    """The tickets that were served for a job."""
    found = page.get("/api/tasks", params={"taskname": "batchmill.ticket"}).json().values()
    return [task for task in found if task["state"] == "SUCCESS" and job_id in task["result"]]


def test_it_shows_tickets_to_whoever_knows_the_password(
    settings: Settings, page: httpx2.Client, eventually: Eventually
) -> None:
    for path in PATHS:
        for headers in ({}, {"Authorization": "Basic !"}, {"Authorization": "Basic YmF0Y2htaWxsOg=="}):
            refused = httpx2.get(page.base_url.join(path), headers=headers, timeout=300)
            assert (refused.status_code, "Basic" in refused.headers["WWW-Authenticate"]) == (401, True), path
    assert httpx2.post(page.base_url.join("/api/worker/shutdown/any")).status_code == 401
    assert page.post("/api/worker/shutdown/any").status_code == 403  # it shows, and commands nothing
    eventually(lambda: status(settings).worker_ready, 60)

    with Client(home=settings.home) as client:
        client.models.add("m", f"fake:?dimensions=4&fail={CANARY}-poison")
        job = client.submit("m", [(f"{CANARY}-id-{n}", f"{CANARY} {n}") for n in range(50)] + [f"{CANARY}-poison"])
        job.wait(timeout=300)
        eventually(lambda: tickets(page, str(job.id)), 30)
        shards = {str(row.id) for row in query(client._database, "SELECT id FROM shards")}

    ticket = tickets(page, str(job.id))[0]
    shown = json.loads(ticket["result"].replace("'", '"'))
    assert ticket["args"] == "('default',)"
    assert shown.pop("shard") in shards
    assert shown == {"job": str(job.id), "items": 51, "model": "m@1"}
    html = page.get(f"/task/{ticket['uuid']}").text
    assert all(part in html for part in ("default", str(job.id), "m@1", "batchmill.ticket"))
    asked = {"draw": 1, "start": 0, "length": 100, "order[0][column]": 0, "columns[0][data]": "received"}
    table = page.get("/tasks/datatable", params=asked)
    assert str(job.id) in table.text
    assert "batchmill.default" in page.get("/broker").text
    assert "Unable to get queues" not in (Layout.of(settings.home).logs / "flower.log").read_text()
    everything = "".join(page.get(path).text for path in ("/api/tasks", "/api/workers", "/metrics")) + html + table.text
    assert "batchmill.ticket" in everything
    assert CANARY not in everything


def test_its_password_is_kept_from_others_and_its_port_is_held_while_it_is_started_again(
    settings: Settings, page: httpx2.Client, eventually: Eventually
) -> None:
    assert page.get("/healthcheck").text == "OK"
    file = Layout.of(settings.home).flower_password
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(password(settings)) >= 32
    before = child(settings)
    assert before.pid is not None
    assert password(settings) not in Path(f"/proc/{before.pid}/cmdline").read_text()
    os.kill(before.pid, 9)
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", page.base_url.port))
    eventually(lambda: child(settings).pid not in (None, before.pid))
    again = httpx2.get(page.base_url.join("/tasks"), auth=(USER, password(settings)), timeout=300)
    assert again.status_code == 200
    assert child(settings).address == before.address


def test_up_says_where_it_is_and_how_to_get_in_each_time(home: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BATCHMILL_")} | {
        "BATCHMILL_HOME": str(home)
    }

    def up(*options: str) -> str:
        command = [str(Path(sys.executable).with_name("batchmill")), "up", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = up("--detach")
    [(address, user, secret)] = re.findall(
        r"^flower +(http://127\.0\.0\.1:\d+)  user (\S+), password (\S+)$", first, re.MULTILINE
    )
    assert up() == first
    told = json.loads(up("--json"))
    assert [told[f"flower_{name}"] for name in ("url", "user", "password")] == [address, user, secret]
    assert httpx2.get(f"{address}/tasks", auth=(user, secret), timeout=300).status_code == 200


def test_a_stack_without_it_comes_up_and_says_so(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.of(home).prepare()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert flower.program_of(Settings(home=home, flower_port=port), layout, {}) is None
    assert f"Flower is not served: [Errno 98] port {port} of 127.0.0.1: Address already in use" in caplog.text
    monkeypatch.setattr("stack.flower.find_spec", lambda _: None)
    assert flower.program_of(Settings(home=home), layout, {}) is None
    assert "pip install 'batchmill[flower]'" in caplog.text
    caplog.clear()
    assert flower.program_of(Settings(home=home, flower_port=0), layout, {}) is None
    assert caplog.text == ""
    assert [file.name for file in home.glob("flower.p*")] == ["flower.password"]
