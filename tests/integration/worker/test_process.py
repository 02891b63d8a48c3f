from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.jobs import JobInfo
from contracts.settings import Settings
from contracts.states import JobState
from storage import jobs
from storage.broker import Tickets
from storage.database import Database
from tests.jobs import make_target, query, submit
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


def test_a_ticket_serves_the_next_job_when_a_model_never_fits(process: WorkerProcess, database: Database) -> None:
    for name, memory in (("huge", 2000), ("vast", 3000), ("small", 10)):
        submit(database, make_target(database, name, source="fake:?memory=10", memory_bytes=memory), [name])
    assert process.serve("default")
    huge, vast, small = states(database)
    for job in (huge, vast):
        assert (job.state, job.error_code) == (JobState.FAILED, "model_too_large")
    assert small.state is JobState.SUCCEEDED
    assert small.counts.computed == 1
    assert not process.serve("default")


def test_a_model_that_cannot_be_loaded_fails_its_job(process: WorkerProcess, database: Database) -> None:
    submit(database, make_target(database, "model", source="fake:?limit=0"), ["text"])
    assert process.serve("default")
    [job] = states(database)
    assert (job.state, job.error_code) == (JobState.FAILED, "model_refused")
    assert query(database, "SELECT state FROM shards")[0].state == "cancelled"
