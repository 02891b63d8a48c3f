"""Compute plans in a worker: measured at the first load, kept, used again, and measured anew where they are wrong."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.names import Quantization
from contracts.settings import Settings
from producer import Client
from storage import plans
from storage.broker import Tickets
from storage.database import Database
from storage.plans import Plan
from tests.jobs import query
from worker.hardware import Hardware
from worker.process import WorkerProcess

KIND = "cpu of a test x1"
ROOM = 2**30


class Host:
    """Workers on made-up hardware, and a client of the same servers."""

    def __init__(self, settings: Settings, database: Database, tickets: Tickets) -> None:
        self._settings = settings
        self._database = database
        self._tickets = tickets
        self._processes: list[WorkerProcess] = []
        self.client = Client(database_url=settings.database_url, broker_url=settings.broker_url, home=settings.home)

    def worker(
        self, room: int = ROOM, *, features: str = "", cores: int = 1, lanes: int | None = None
    ) -> WorkerProcess:
        hardware = Hardware("cpu", KIND, room, {}, frozenset(features.split()), cores, lanes)
        process = WorkerProcess(self._settings, self._database, self._tickets, hardware)
        process.start()
        self._processes.append(process)
        return process

    def compute(self, process: WorkerProcess, model: str, text: str) -> None:
        job = self.client.submit(model, [text])
        while process.serve("default"):
            pass
        assert job.wait(60).counts.computed == 1

    def plan(self, model: str) -> Any:
        [found] = self.client.models.describe(model)[1]
        return found

    def close(self) -> None:
        for process in self._processes:
            process.drain()
        for process in self._processes:
            process.stop()
        self.client.close()


@pytest.fixture
def host(database: Database, database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Host]:
    settings = Settings(database_url=database_url, broker_url=broker_url, home=tmp_path)
    with Tickets(broker_url) as tickets:
        found = Host(settings, database, tickets)
        yield found
        found.close()


def test_a_plan_is_measured_once_and_told(host: Host, encoder: Path, caplog: pytest.LogCaptureFixture) -> None:
    host.client.models.add("model", str(encoder), quantization="nf4")
    with caplog.at_level(logging.INFO):
        host.compute(host.worker(cores=2, features="AVX512"), "model", "one")
    found = host.plan("model")
    assert found.device == KIND
    assert {rate["dtype"] for rate in found.rates} == {"float32", "bfloat16"}
    assert {(rate["lanes"], rate["threads"]) for rate in found.rates} >= {(1, 2)}
    told = f"model@1 on {KIND}: {found.dtype}, lanes × threads {found.lanes} × {found.threads}"
    assert any(record.message.startswith(told) for record in caplog.records)
    host.compute(host.worker(cores=2, features="AVX512"), "model", "two")
    assert host.plan("model").measured_at == found.measured_at


def test_a_plan_that_names_what_the_host_lacks_is_measured_anew(
    host: Host, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    spec = host.client.models.add("model", "fake:?dimensions=8")
    with database.transaction() as connection:
        plans.put(connection, spec.id, KIND, Plan(512, 1.0, lanes=8, threads=4))
    host.compute(host.worker(), "model", "text")
    assert (host.plan("model").lanes, host.plan("model").threads) == (1, 1)
    [said] = [record.message for record in caplog.records if "measured anew" in record.message]
    assert said == (
        f"model@1: the plan for {KIND} has 8 × 4 lanes × threads, and there are 1 here: it is measured anew"
    )


def test_a_plan_for_an_arithmetic_that_is_unknown_is_measured_anew(
    host: Host, database: Database, encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = host.client.models.add("model", str(encoder))
    with database.transaction() as connection:
        plans.put(connection, spec.id, KIND, Plan(512, 1.0, dtype="float8"))
    host.compute(host.worker(), "model", "text")
    assert host.plan("model").dtype == "float32"
    assert any("computes float8, which this host does not: it is measured anew" in r.message for r in caplog.records)


def test_lanes_that_the_settings_fix_are_the_plan(host: Host, encoder: Path) -> None:
    host.client.models.add("model", str(encoder))
    host.compute(host.worker(cores=2), "model", "one")
    host.compute(host.worker(cores=2, lanes=2), "model", "two")
    assert (host.plan("model").lanes, host.plan("model").threads) == (2, 1)


def test_without_room_for_wider_arithmetic_a_model_is_computed_as_it_is_held(
    host: Host, encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = host.client.models.add("model", str(encoder), quantization="int8")
    host.compute(host.worker(spec.memory_bytes * 2), "model", "text")
    assert host.plan("model").dtype == "int8"
    [said] = [record.message for record in caplog.records if "slowly" in record.message]
    assert "in float32 it would take up to" in said
    assert said.endswith("more than models have here: it is computed in int8, slowly")


def test_with_room_8_bits_are_unpacked_where_integers_are_slow(host: Host, encoder: Path) -> None:
    host.client.models.add("model", str(encoder), quantization="int8")
    host.compute(host.worker(features="AVX512"), "model", "text")
    assert host.plan("model").dtype == "float32"
    assert host.plan("model").memory_bytes > host.client.models.get("model").memory_bytes


def test_a_planned_model_that_has_no_room_now_is_computed_as_it_is_held(
    host: Host, encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = host.client.models.add("model", str(encoder), quantization="int8")
    host.compute(host.worker(), "model", "one")
    assert host.plan("model").dtype == "float32"
    host.compute(host.worker(spec.memory_bytes + 1000), "model", "two")
    assert any("no room for its weights in float32 now, only in int8" in record.message for record in caplog.records)
    assert host.plan("model").dtype == "float32"


@pytest.mark.parametrize(("room", "held"), [(8.0, Quantization.NONE), (1.5, Quantization.NF4)])
def test_auto_holds_what_is_fastest_and_what_is_smallest_where_that_has_no_room(
    host: Host, encoder: Path, room: float, held: Quantization
) -> None:
    spec = host.client.models.add("model", str(encoder), quantization="auto", fidelity=0.97)
    assert (spec.quantization, spec.fidelity) == (Quantization.AUTO, 0.97)
    host.compute(host.worker(int(spec.memory_bytes * room)), "model", "text")
    assert host.plan("model").quantization == held


def test_a_worker_measures_anew_when_it_is_asked_to(host: Host, eventually: Callable[..., None]) -> None:
    host.client.models.add("model", "fake:?dimensions=8")
    host.worker()
    since = host.client.models.measure("model")  # nothing was measured or loaded yet
    eventually(lambda: host.client.models.describe("model")[1])
    first = host.plan("model").measured_at
    assert first >= since
    host.client.models.measure("model")
    eventually(lambda: host.plan("model").measured_at > first)


def test_jobs_go_on_while_a_model_is_measured_between_their_shards(
    host: Host, database: Database, eventually: Callable[..., None]
) -> None:
    host.client.models.add("model", "fake:?dimensions=8")
    process = host.worker()
    host.compute(process, "model", "text")
    before = host.plan("model").measured_at
    host.client.models.measure("model")
    job = host.client.submit("model", [f"text {number}" for number in range(50)])
    eventually(lambda: process.serve("default") is None and host.plan("model").measured_at > before, 60)
    eventually(lambda: process.serve("default") is None and job.refresh().state == "succeeded", 60)
    assert query(database, "SELECT count(*) AS held FROM shards WHERE state = 'leased'")[0].held == 0
