"""Schedules: what a tick makes of them, on time, after an outage, and while a run is open."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from contracts.errors import InvalidRequest, UnknownSchedule
from contracts.states import JobState, RunState
from storage import jobs, models, runs, schedules
from storage.database import Database
from tests.jobs import execute, make_model, make_target, query
from tests.runs import add, claimed, end, get, history, run_now, score, spec, states

DAY = timedelta(days=1)
START = datetime(2026, 11, 1, 12, tzinfo=UTC)
FIRST = datetime(2026, 11, 2, 2, 30, tzinfo=UTC)


@pytest.fixture
def target_id(database: Database) -> int:
    return make_target(database)


def do(database: Database, verb: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with database.transaction() as connection:
        return verb(connection, *arguments, **named)


def tick(database: Database, now: datetime) -> int:
    return len(schedules.make_due(database, now))


def test_a_schedule_is_due_from_when_it_was_added(database: Database) -> None:
    made = add(database, now=START, spec=spec(metadata={"team": "search"}), overlap="queue", catch_up="all")
    assert (made.name, made.cron, made.timezone, made.overlap, made.catch_up) == (
        *("nightly", "30 2 * * *", "UTC", "queue", "all"),
    )
    assert (made.next_due_at, made.paused_at, made.last) == (FIRST, None, None)
    assert made.spec == spec(metadata={"team": "search"})
    assert tick(database, FIRST - timedelta(seconds=1)) == 0
    assert tick(database, FIRST) == 1
    assert tick(database, FIRST) == tick(database, FIRST + timedelta(hours=1)) == 0
    found = get(database)
    assert found.next_due_at == FIRST + DAY
    assert found.last is not None
    assert (found.last.due_at, found.last.state, found.last.spec) == (FIRST, RunState.QUEUED, made.spec)


def test_a_name_is_taken_once(database: Database) -> None:
    add(database)
    with pytest.raises(InvalidRequest, match="schedule 'nightly' exists already"):
        add(database)
    add(database, "a")
    assert [one.name for one in do(database, schedules.list_all)] == ["a", "nightly"]


def test_the_database_says_the_time(database: Database) -> None:
    add(database, cron="* * * * *")
    execute(database, "UPDATE schedules SET next_due_at = date_trunc('minute', now())")
    assert len(schedules.make_due(database)) == 1
    assert get(database).next_due_at > do(database, lambda c: c.execute(text("SELECT now()")).scalar_one())


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [
        ("latest", ["skipped", "skipped", "skipped", "queued"]),
        ("all", ["queued"] * 4),
        ("none", ["skipped"] * 4),
    ],
)
def test_missed_nights_follow_catch_up(database: Database, catch_up: str, expected: list[str]) -> None:
    add(database, now=START, catch_up=catch_up)
    assert tick(database, FIRST + 3 * DAY + timedelta(hours=5)) == 4
    assert states(database) == expected
    for run in history(database):
        skipped = run.state is RunState.SKIPPED
        assert run.error_code == ("missed" if skipped else None)
        assert (run.finished_at is not None) == skipped
        assert not skipped or f"catches up with {catch_up}" in (run.error_message or "")
    assert [run.due_at for run in history(database)] == [FIRST + n * DAY for n in range(4)]
    assert get(database).next_due_at == FIRST + 4 * DAY
    assert tick(database, FIRST + 4 * DAY) == 1


def test_a_tick_that_comes_a_little_late_misses_nothing(database: Database) -> None:
    add(database, now=START, catch_up="none")
    assert tick(database, FIRST + schedules.GRACE) == 1
    tick(database, FIRST + DAY + schedules.GRACE + timedelta(seconds=1))
    tick(database, FIRST + 3 * DAY + timedelta(seconds=8))
    assert states(database) == ["queued", "skipped", "skipped", "skipped"]
    assert [run.error_code for run in history(database)] == [None, "missed", "missed", "overlap"]


def test_all_missed_nights_run_one_after_the_other(database: Database, target_id: int) -> None:
    add(database, now=START, catch_up="all", overlap="skip")
    tick(database, FIRST + 2 * DAY)
    ended = [end(database, target_id) for _ in range(3)]
    assert [run.due_at for run in ended] == [FIRST, FIRST + DAY, FIRST + 2 * DAY]


def test_an_outage_of_years_is_bounded(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(schedules, "MOST", 20)
    add(database, now=START, cron="* * * * *", catch_up="latest")
    now = START + timedelta(days=900)
    with caplog.at_level(logging.WARNING):
        assert tick(database, now) == 20
    assert states(database) == ["skipped"] * 19 + ["queued"]
    assert history(database)[-1].due_at == now
    assert "schedule nightly: runs due before 2029-04-19T11:41:00+00:00 were missed, and are passed over" in caplog.text
    assert tick(database, now) == 0


def test_overlap_skip_names_the_run_that_is_open(database: Database, target_id: int) -> None:
    add(database, now=START)
    tick(database, FIRST)
    open_run = claimed(database).run
    tick(database, FIRST + DAY)
    [_, skipped] = history(database)
    assert (skipped.state, skipped.error_code) == (RunState.SKIPPED, "overlap")
    assert skipped.error_message == f"run {open_run.id}, due {FIRST.isoformat()}, was reading still"
    do(database, runs.cancel, open_run.id)
    tick(database, FIRST + 2 * DAY)
    assert states(database) == ["cancelled", "skipped", "queued"]


def test_overlap_queue_waits(database: Database, target_id: int) -> None:
    add(database, now=START, overlap="queue")
    tick(database, FIRST)
    tick(database, FIRST + DAY)
    assert states(database) == ["queued", "queued"]
    first = end(database, target_id)
    second = end(database, target_id)
    assert (first.due_at, second.due_at) == (FIRST, FIRST + DAY)


def test_overlap_cancel_ends_the_open_run_and_its_job(database: Database, target_id: int) -> None:
    add(database, now=START, overlap="cancel")
    tick(database, FIRST)
    job_id = score(database, claimed(database), target_id, ["a", "b"])
    tick(database, FIRST)  # nothing is due: it goes on
    assert states(database) == ["scoring"]
    tick(database, FIRST + DAY)
    assert states(database) == ["cancelled", "queued"]
    [ended, _] = history(database)
    assert ended.error_message == f"the run due {(FIRST + DAY).isoformat()} took its place"
    assert do(database, jobs.get, job_id).state is JobState.CANCELLED
    assert claimed(database).run.due_at == FIRST + DAY


@pytest.mark.parametrize(("overlap", "expected"), [("skip", "skipped"), ("queue", "queued"), ("cancel", "queued")])
def test_run_now_obeys_overlap(database: Database, target_id: int, overlap: str, expected: str) -> None:
    add(database, overlap=overlap)
    first = run_now(database)
    assert first.state is RunState.QUEUED
    second = run_now(database)
    assert second.state == expected
    assert second.due_at is not None
    assert first.due_at is not None
    assert second.due_at > first.due_at
    assert do(database, runs.get, first.id).state == ("cancelled" if overlap == "cancel" else "queued")


def test_a_paused_schedule_makes_nothing_and_what_it_missed_is_not_made_up_for(database: Database) -> None:
    add(database, now=START, catch_up="all")
    assert do(database, schedules.pause, "nightly")
    assert not do(database, schedules.pause, "nightly")
    found = get(database)
    assert found.next_due_at is None
    assert found.paused_at is not None
    assert tick(database, FIRST + 9 * DAY) == 0
    assert run_now(database, now=FIRST + timedelta(hours=1)).state is RunState.QUEUED
    assert do(database, schedules.resume, "nightly", FIRST + 10 * DAY)
    assert not do(database, schedules.resume, "nightly", FIRST + 20 * DAY)
    found = get(database)
    assert (found.paused_at, found.next_due_at) == (None, FIRST + 11 * DAY)


def test_a_clock_that_goes_back_doubles_nothing_and_leaves_nothing_out(database: Database) -> None:
    add(database, now=START, catch_up="all", overlap="queue")
    assert tick(database, FIRST) == 1
    assert tick(database, FIRST + 5 * DAY) == 5  # it jumped ahead
    assert tick(database, FIRST + timedelta(hours=1)) == 0  # and was set right
    assert get(database).next_due_at == FIRST + DAY
    for day in range(1, 8):
        tick(database, FIRST + day * DAY)
    assert [run.due_at for run in history(database)] == [FIRST + day * DAY for day in range(8)]


def test_removal_cancels_what_is_open(database: Database, target_id: int) -> None:
    add(database, overlap="queue")
    run_now(database)
    run_now(database)
    job_id = score(database, claimed(database), target_id, ["a"])
    do(database, schedules.remove, "nightly")
    assert query(database, "SELECT id FROM runs") == []
    assert do(database, jobs.get, job_id).state is JobState.CANCELLED
    for verb in (schedules.get, schedules.remove, schedules.pause, schedules.resume, schedules.run_now):
        with pytest.raises(UnknownSchedule, match="no schedule 'nightly'"):
            do(database, verb, "nightly")


def test_a_schedule_says_that_its_model_is_gone(database: Database) -> None:
    with database.transaction() as connection:
        model = make_model(connection)
    assert add(database).problem is None
    do(database, models.remove, model.id)
    assert "'model' is not registered" in (get(database).problem or "")


def test_many_ticks_at_once_make_each_run_once(database: Database) -> None:
    for number in range(8):
        add(database, f"s{number}", now=START, catch_up="all", overlap="queue")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: tick(database, FIRST + 9 * DAY), range(8)))
    assert sum(made) == 80
    assert query(database, "SELECT count(DISTINCT (schedule_id, due_at)) AS n FROM runs")[0].n == 80


def test_a_job_that_is_being_sealed_holds_up_no_other(
    database: Database, target_id: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(schedules, "LOCK_SECONDS", 0.2)
    add(database, "first", now=START, overlap="cancel")
    tick(database, FIRST)
    job_id = score(database, claimed(database), target_id, ["a"])
    add(database, "second", now=FIRST, overlap="cancel")
    with database.transaction() as sealing:
        jobs.lock(sealing, job_id)
        with caplog.at_level(logging.WARNING):
            assert tick(database, FIRST + DAY) == 1
    assert "schedule first: " in caplog.text
    assert "lock timeout" in caplog.text
    assert [run.due_at for run in history(database, "second")] == [FIRST + DAY]
    assert get(database, "first").next_due_at == FIRST + DAY
    assert tick(database, FIRST + DAY) == 1  # nor is it forgotten
    assert [run.state for run in history(database, "first")] == ["cancelled", "queued"]


def test_a_schedule_that_cannot_be_read_holds_up_no_other(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    add(database, "first", now=START)
    add(database, "second", now=START)
    execute(database, "UPDATE schedules SET cron = 'whenever', timezone = '' WHERE name = 'first'")
    with caplog.at_level(logging.WARNING):
        assert tick(database, FIRST) == 1
    assert "schedule first: " in caplog.text
    assert len(history(database, "second")) == 1


def test_a_zone_that_this_machine_does_not_know_holds_up_no_other(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    add(database, "first", now=START)
    add(database, "second", now=START)
    execute(database, "UPDATE schedules SET timezone = 'Mars/Olympus' WHERE name = 'first'")
    with caplog.at_level(logging.WARNING):
        assert tick(database, FIRST) == 1
    assert "schedule first: timezone 'Mars/Olympus': unknown" in caplog.text
    assert get(database, "first").next_due_at == FIRST
