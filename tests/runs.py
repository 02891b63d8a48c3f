"""Schedules and runs made through the storage layer alone: no client, no runner."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from contracts.runs import RunInfo, RunSpec, ScheduleInfo
from contracts.states import Priority
from storage import jobs, runs, schedules
from storage.database import Database
from storage.runs import RunLease
from tests.jobs import MINUTE, append, as_lines, execute, query, seal


def spec(**changes: Any) -> RunSpec:
    values = {
        "source": {"kind": "files", "url": "/in.jsonl"},
        "model": "model",
        "sink": {"kind": "file", "url": "/out.jsonl"},
    }
    return RunSpec.model_validate(values | changes)


def add(database: Database, name: str = "nightly", cron: str = "30 2 * * *", **changes: Any) -> ScheduleInfo:
    """A schedule; its time begins at `now`, where that is given."""
    values: Mapping[str, Any] = {
        "timezone": "UTC",
        "overlap": "skip",
        "catch_up": "latest",
        "spec": spec(),
        "now": None,
    }
    with database.transaction() as connection:
        return schedules.add(connection, name=name, cron=cron, **(dict(values) | changes))


def get(database: Database, name: str = "nightly") -> ScheduleInfo:
    with database.transaction() as connection:
        return schedules.get(connection, name)


def history(database: Database, name: str = "nightly") -> list[RunInfo]:
    """Oldest first."""
    with database.transaction() as connection:
        return runs.history(connection, name, 10_000)[::-1]


def run_now(database: Database, name: str = "nightly", now: datetime | None = None) -> RunInfo:
    with database.transaction() as connection:
        return schedules.run_now(connection, name, now)


def claim(database: Database, runner: str = "test", lease: timedelta = MINUTE) -> RunLease | None:
    with database.transaction() as connection:
        return runs.claim(connection, runner=runner, lease=lease)


def claimed(database: Database, **how: Any) -> RunLease:
    lease = claim(database, **how)
    assert lease is not None
    return lease


def receive(database: Database, lease: RunLease, target_id: int, payloads: list[str]) -> UUID:
    """Read into a job that is still being received."""
    with database.transaction() as connection:
        job_id = jobs.open_job(connection, target_id=target_id, pool="default", priority=Priority.BULK, metadata={})
        runs.bind_job(connection, lease.token, job_id)
    append(database, job_id, as_lines(payloads))
    return job_id


def score(database: Database, lease: RunLease, target_id: int, payloads: list[str]) -> UUID:
    """Read all of it, up to the state scoring."""
    job_id = receive(database, lease, target_id, payloads)
    seal(database, job_id, target_id)
    with database.transaction() as connection:
        runs.scoring(connection, lease.token)
    return job_id


def end(database: Database, target_id: int, payloads: list[str] | None = None) -> RunInfo:
    """Carry the next run out; its job is done at once."""
    job_id = score(database, claimed(database), target_id, payloads or ["a"])
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    lease = claimed(database)
    with database.transaction() as connection:
        runs.succeed(connection, lease.token, None, None, None)
        return runs.get(connection, lease.run.id)


def expire(database: Database, lease: RunLease) -> None:
    """Let a lease run out, as the death of its runner would."""
    execute(database, "UPDATE runs SET lease_expires_at = now() - interval '1 second' WHERE id = :id", id=lease.run.id)


def states(database: Database) -> list[str]:
    """Of all runs, the one that is due first first."""
    return [row.state for row in query(database, "SELECT state FROM runs ORDER BY due_at, created_at")]
