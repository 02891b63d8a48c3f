import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.contextvars import get_contextvars

from contracts.errors import ArtifactsUnavailable
from contracts.jobs import JobInfo
from contracts.models import ModelSpec
from contracts.settings import Settings
from contracts.states import JobState
from storage import jobs
from storage.artifacts import ArtifactStore
from storage.broker import Tickets
from storage.database import Database
from tests.jobs import execute, make_target, query, submit
from worker.engines.fake import FakeEngine
from worker.hardware import Hardware
from worker.process import WorkerProcess


@pytest.fixture
def process(database: Database, database_url: str, broker_url: str, tmp_path: Path) -> Iterator[WorkerProcess]:
    settings = Settings(database_url=database_url, broker_url=broker_url, home=tmp_path)
    with Tickets(broker_url) as tickets:
        process = WorkerProcess(settings, database, tickets, Hardware("cpu", "test", 1000))
        process.start()
        yield process
        process.drain()
        process.stop()


def states(database: Database) -> list[JobInfo]:
    with database.transaction() as connection:
        return [jobs.get(connection, row.id) for row in query(database, "SELECT id FROM jobs ORDER BY created_at")]


def test_a_ticket_serves_the_next_job_when_a_model_never_fits(
    process: WorkerProcess, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, str]] = []
    caplog.handler.addFilter(lambda record: told.append((record.levelname, get_contextvars().get("job", ""))) is None)
    for name, memory in (("huge", 2000), ("vast", 3000), ("small", 10)):
        submit(database, make_target(database, name, source="fake:?memory=10", memory_bytes=memory), [name])
    assert process.serve("default")
    huge, vast, small = states(database)
    for job in (huge, vast):
        assert (job.state, job.error_code) == (JobState.FAILED, "model_too_large")
    assert small.state is JobState.SUCCEEDED
    assert small.counts.computed == 1
    assert [job for level, job in told if level == "ERROR"] == [str(huge.id), str(vast.id)]
    assert not process.serve("default")


def test_a_model_that_cannot_be_loaded_fails_its_job(process: WorkerProcess, database: Database) -> None:
    submit(database, make_target(database, "model", source="fake:?limit=0"), ["text"])
    assert process.serve("default")
    [job] = states(database)
    assert (job.state, job.error_code) == (JobState.FAILED, "model_refused")
    assert query(database, "SELECT state FROM shards")[0].state == "cancelled"


def test_a_host_that_cannot_hold_a_model_leaves_its_job_to_others(
    process: WorkerProcess, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ArtifactsUnavailable("the cache: the disk is full: free some space and try again")

    monkeypatch.setattr(ArtifactStore, "fetch", full)
    submit(database, make_target(database), ["text"])
    assert process.serve("default")
    [job] = states(database)
    assert job.state is JobState.RUNNING
    [row] = query(database, "SELECT state, attempt, not_before > now() AS rests, alone FROM shards")
    assert (row.state, row.attempt, row.rests, row.alone) == ("queued", 1, True, False)
    assert not process.serve("default")


def test_nothing_runs_beside_a_shard_that_must_run_alone(
    process: WorkerProcess, database: Database, eventually: Callable[..., None]
) -> None:
    job_id = submit(
        database, make_target(database, source="fake:?load_delay=0.5"), ["one", "two", "three"], per_shard=1
    )
    execute(database, "UPDATE shards SET alone = true WHERE ordinal = 2")
    with ThreadPoolExecutor(4) as slots:
        first = slots.submit(process.serve, "default")
        eventually(lambda: query(database, "SELECT FROM shards WHERE state = 'leased' AND alone"))
        others = [slots.submit(process.serve, "default") for _ in range(3)]
        assert [other.result(10) for other in others] == [None] * 3
        assert first.result(10)
    assert process.serve("default")
    assert process.serve("default")
    with database.transaction() as connection:
        assert jobs.get(connection, job_id).state is JobState.SUCCEEDED


def test_a_model_that_left_takes_no_memory_any_more(
    process: WorkerProcess, database: Database, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    engines: list[weakref.ref[FakeEngine]] = []
    load = FakeEngine.load

    def noted(model: ModelSpec, folder: Path, device: str) -> FakeEngine:
        engines.append(weakref.ref(engine := load(model, folder, device)))
        return engine

    monkeypatch.setattr(FakeEngine, "load", noted)
    for name in ("first", "second"):
        target = make_target(database, name, source="fake:?memory=600", memory_bytes=600)
        submit(database, target, ["text", "other"])
        assert process.serve("default")
    first, second = engines
    eventually(lambda: first() is None)
    assert second() is not None


def test_it_starves_only_beside_work_that_it_could_claim(process: WorkerProcess, database: Database) -> None:
    assert not process.starves()
    submit(database, make_target(database, "elsewhere"), ["text"], pool="elsewhere")
    assert not process.starves()
    submit(database, make_target(database, "here"), ["text"])
    assert process.starves()
    assert process.serve("default")
    assert not process.starves()


def test_leases_can_be_given_back_while_the_slots_are_busy(
    process: WorkerProcess, database: Database, eventually: Callable[..., None]
) -> None:
    submit(database, make_target(database, source="fake:?load_delay=2"), ["text"])
    with ThreadPoolExecutor(1) as slot:
        served = slot.submit(process.serve, "default")
        eventually(lambda: not process.idle)
        process.give_back()
        [row] = query(database, "SELECT state, attempt FROM shards")
        assert (row.state, row.attempt) == ("queued", 0)
        process.drain()
        assert served.result(20)
    assert query(database, "SELECT state FROM shards") == [("queued",)]


def test_memory_that_is_too_small_halves_the_budget_and_is_remembered(
    process: WorkerProcess, database: Database
) -> None:
    # Four inputs of two tokens each fit; when it is measured, four of 64.
    submit(database, make_target(database, "model", source="fake:?oom=4&oom_on=vast"), ["vast", *"abcdefgh" * 4])
    assert process.serve("default")
    [job] = states(database)
    assert job.state is JobState.SUCCEEDED
    assert (job.counts.computed, job.counts.failed) == (8, 1)
    assert query(database, "SELECT code FROM item_errors")[0].code == "out_of_memory"
    [budget] = query(database, "SELECT budget_tokens, ceiling_tokens FROM batch_budgets")
    assert budget.budget_tokens == budget.ceiling_tokens <= 8
