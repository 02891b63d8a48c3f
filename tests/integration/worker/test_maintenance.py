from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from contracts.errors import BrokerUnavailable, DatabaseUnavailable
from contracts.settings import Settings
from storage import control
from storage.broker import Tickets
from storage.database import Database
from tests import runs
from tests.jobs import append, as_lines, claimed, execute, expire, make_target, open_job, query, submit
from worker import maintenance


@pytest.fixture
def settings(database_url: str, broker_url: str, tmp_path: Path) -> Settings:
    return Settings(database_url=database_url, broker_url=broker_url, home=tmp_path, abandon_seconds=60)


def test_a_tick_does_all_that_is_due(database: Database, settings: Settings, broker_url: str) -> None:
    target_id = make_target(database)
    submit(database, target_id, "ab", per_shard=1)
    lease = claimed(database)
    expire(database, lease)
    over = submit(database, target_id, "cd")
    execute(database, "UPDATE jobs SET expires_at = now() - interval '1 second' WHERE id = :id", id=over)
    abandoned = open_job(database, target_id)
    append(database, abandoned, as_lines("ef"))
    execute(database, "UPDATE jobs SET received_at = now() - interval '1 hour' WHERE id = :id", id=abandoned)
    runs.add(database)
    execute(database, "UPDATE schedules SET cron = '* * * * *', next_due_at = date_trunc('minute', now())")
    with Tickets(broker_url) as tickets:
        maintenance.tick(settings, database, tickets)
        assert tickets.depth("default") == 1  # for the shard that nobody had claimed
    assert query(database, "SELECT state FROM shards WHERE id = :id", id=lease.shard_id) == [("queued",)]
    assert query(database, "SELECT state FROM jobs WHERE id = :id", id=over) == [("expired",)]
    assert query(database, "SELECT FROM jobs WHERE id = :id", id=abandoned) == []
    assert runs.states(database)[-1] == "queued"
    assert query(database, "SELECT FROM items WHERE job_id = :id", id=abandoned) == []


def test_what_cannot_be_done_now_holds_up_nothing_else(
    database: Database, settings: Settings, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(database, make_target(database), ["text"])
    lease = claimed(database)
    expire(database, lease)

    def no_broker(*_: object) -> int:
        raise BrokerUnavailable("it does not answer")

    def no_expiry(*_: object, **__: object) -> list[object]:
        raise DatabaseUnavailable(f"{uuid4()}")

    monkeypatch.setattr(Tickets, "depth", no_broker)
    monkeypatch.setattr(control, "expire_due", no_expiry)
    execute(database, "ALTER TABLE schedules RENAME next_due_at TO later")  # nobody thought of it
    abandoned = open_job(database, make_target(database))
    execute(database, "UPDATE jobs SET received_at = now() - interval '1 hour' WHERE id = :id", id=abandoned)
    with Tickets(broker_url) as tickets:
        maintenance.tick(settings, database, tickets)
    [row] = query(database, "SELECT state, not_before - now() AS rest FROM shards")
    assert row.state == "queued"
    assert row.rest > timedelta(0)
    assert query(database, "SELECT FROM jobs WHERE id = :id", id=abandoned) == []
