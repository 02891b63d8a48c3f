import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from contracts.errors import DatabaseBusy
from contracts.settings import Settings
from producer.cli.session import Session
from stack.cli import app
from storage import chores, retention
from storage.database import Database
from tests.conftest import Mill
from tests.jobs import claimed, execute, finish, make_target, query, submit
from worker.purging import CHORE, purge_when_due

SETTINGS = Settings(retain_jobs_days=7, retain_results_days=30, purge_hours=1)


def old_job(database: Database, target_id: int, payloads: str) -> None:
    """A job that ended eight days ago, of inputs and results that are as old as a month and a day."""
    job_id = submit(database, target_id, payloads)
    finish(database, claimed(database))
    execute(
        database,
        "UPDATE jobs SET created_at = now() - :age, finished_at = now() - :age WHERE id = :id",
        id=job_id,
        age=timedelta(days=8),
    )
    execute(database, "UPDATE inputs SET created_at = now() - interval '31 days'")
    execute(database, "UPDATE results SET shard_id = uuidv7(interval '-31 days')")


def is_due(database: Database) -> None:
    execute(database, "UPDATE chores SET due_at = now() WHERE name = :name", name=CHORE)


def test_a_tick_purges_when_it_is_time(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    old_job(database, make_target(database), "ab")
    assert purge_when_due(SETTINGS, database) is None  # the first tick of all says when the second is due
    assert purge_when_due(SETTINGS, database) is None
    is_due(database)
    thread = purge_when_due(SETTINGS, database)
    assert thread is not None
    assert purge_when_due(SETTINGS, database) is None
    thread.join(30)
    assert "purged 1 jobs with 2 items, 0 runs, 2 results, 2 inputs" in caplog.text
    assert query(database, "SELECT count(*) FROM jobs") == [(0,)]


def test_one_of_many_takes_a_turn(database: Database) -> None:
    def ask(_: int) -> bool:
        with database.transaction() as connection:
            return chores.take_turn(connection, "chore", timedelta(hours=1))

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(ask, range(16))) == 0
        execute(database, "UPDATE chores SET due_at = now()")
        assert sum(threads.map(ask, range(16))) == 1


@pytest.mark.parametrize(("error", "level"), [(DatabaseBusy("no gap"), "WARNING"), (ZeroDivisionError(), "ERROR")])
def test_a_purge_that_fails_is_said(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception, level: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(retention, "purge", fails)
    purge_when_due(SETTINGS, database)
    is_due(database)
    thread = purge_when_due(SETTINGS, database)
    assert thread is not None
    thread.join(30)
    assert [record.levelname for record in caplog.records] == [level]


def test_the_command_says_what_would_go_and_removes_it(mill: Mill) -> None:
    def batchmill(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["purge", *arguments], obj=Session(mill.client), catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    with Database(mill.environment["BATCHMILL_DATABASE_URL"]) as database:
        old_job(database, make_target(database), "ab")
        assert "jobs     0" in batchmill("--dry-run")
        assert '"jobs": 1' in batchmill("--dry-run", "--jobs-older-than", "7", "--json")
        assert '"results": 2' in batchmill(
            "--dry-run", "--jobs-older-than", "7", "--results-older-than", "30", "--json"
        )
        assert '"jobs": 0' in batchmill("--jobs-older-than", "0", "--results-older-than", "0", "--json")
        assert query(database, "SELECT count(*) FROM jobs") == [(1,)]
        found = batchmill("--jobs-older-than", "7", "--results-older-than", "30")
        assert [line.split() for line in found.splitlines()] == [
            ["jobs", "1"],
            ["items", "2"],
            ["runs", "0"],
            ["results", "2"],
            ["inputs", "2"],
        ]
        assert query(database, "SELECT count(*) FROM jobs") == [(0,)]
