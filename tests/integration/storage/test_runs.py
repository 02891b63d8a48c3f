"""Runs: every transition, who holds them, and whom a lost lease stops."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection

from contracts.errors import LeaseLost, RunNotFound, UnknownSchedule, WrongState
from contracts.events import EventBody, RunData, job_link
from contracts.runs import Changes, Drift, RunInfo, RunProgress
from contracts.states import JobState, RunState
from storage import deliveries, endpoints, jobs, lostruns, oldjobs, runs
from storage.database import Database
from storage.runs import RunLease
from tests.jobs import MINUTE, execute, make_target, open_job, query, submit
from tests.runs import add, claim, claimed, end, expire, history, receive, run_now, score, spec, states

CALLBACK = "https://receiver.example/hook"
CHANGES = Changes(rows=3, new=1, changed=1, removed=0, cached=2, computed=1, failed=0)
NIGHT = datetime(2026, 11, 22, 2, 30, tzinfo=UTC)


@pytest.fixture
def target_id(database: Database) -> int:
    return make_target(database)


def do(database: Database, verb: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with database.transaction() as connection:
        return verb(connection, *arguments, **named)


def info(database: Database, run_id: UUID) -> RunInfo:
    return do(database, runs.get, run_id)


def test_a_run_of_a_schedule_goes_through_its_states(database: Database, target_id: int) -> None:
    add(database)
    run = run_now(database)
    assert (run.state, run.schedule, run.started_at, run.job_id) == (RunState.QUEUED, "nightly", None, None)
    reading = claimed(database)
    assert (reading.run.id, reading.run.state, reading.attempt) == (run.id, RunState.READING, 1)
    assert reading.run.started_at is not None
    do(database, runs.note_progress, reading.token, RunProgress(rows_read=2, bytes_read=20))
    job_id = score(database, reading, target_id, ["a", "b"])
    found = info(database, run.id)
    assert (found.state, found.job_id, found.progress.rows_read) == (RunState.SCORING, job_id, 2)
    assert claim(database) is None  # its job goes on
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    writing = claimed(database)
    assert (writing.run.id, writing.run.state, writing.written) == (run.id, RunState.WRITING, None)
    assert writing.token != reading.token
    do(database, runs.note_written, writing.token, {"parts": 1}, RunProgress(rows_written=1))
    do(database, runs.succeed, writing.token, CHANGES, Drift(rows=3, psi=0.01), "/report.html")
    found = info(database, run.id)
    assert (found.state, found.changes, found.report) == (RunState.SUCCEEDED, CHANGES, "/report.html")
    assert found.drift == Drift(rows=3, psi=0.01)
    assert found.finished_at is not None
    assert query(database, "SELECT token, lease_expires_at, written FROM runs") == [(None, None, None)]


def test_only_the_token_changes_what_it_holds(database: Database, target_id: int) -> None:
    add(database)
    run_now(database)
    lost = claimed(database)
    expire(database, lost)
    held = claimed(database)
    assert (held.run.id, held.run.state, held.attempt) == (lost.run.id, RunState.READING, 2)
    job_id = open_job(database, target_id)

    def refused(*verbs: tuple[Any, ...]) -> None:
        before = query(database, "SELECT * FROM runs")
        for verb, *arguments in verbs:
            with pytest.raises(LeaseLost):
                do(database, verb, *arguments)
        assert query(database, "SELECT * FROM runs") == before
        assert query(database, "SELECT count(*) AS n FROM deliveries")[0].n == 0

    progress = RunProgress(rows_read=9)
    for token in (lost.token, uuid4()):
        assert not do(database, runs.renew, token, MINUTE)
        refused(
            (runs.release, token),
            (runs.bind_job, token, job_id),
            (runs.note_progress, token, progress),
            (runs.note_written, token, {}, progress),
            (runs.scoring, token),
            (runs.succeed, token, None, None, None),
            (runs.fail, token, "code", "message"),
        )
    # Nor does the right one what its state does not allow.
    refused((runs.note_written, held.token, {}, progress), (runs.succeed, held.token, None, None, None))
    job_id = score(database, held, target_id, ["a"])
    refused((runs.note_progress, held.token, progress), (runs.fail, held.token, "code", "message"))
    execute(database, "UPDATE jobs SET state = 'failed', finished_at = now() WHERE id = :id", id=job_id)
    writing = claimed(database)
    refused((runs.bind_job, writing.token, job_id), (runs.scoring, writing.token))


def test_a_lease_is_renewed_and_given_back(database: Database) -> None:
    add(database)
    run_now(database)
    lease = claimed(database, lease=timedelta(seconds=1))
    assert do(database, runs.renew, lease.token, timedelta(hours=1))
    [row] = query(database, "SELECT lease_expires_at > now() + interval '50 minutes' AS extended, runner FROM runs")
    assert (row.extended, row.runner) == (True, "test")
    assert claim(database) is None
    do(database, runs.release, lease.token)
    again = claimed(database)
    assert (again.run.state, again.attempt) == (RunState.READING, 1)
    do(database, runs.release, again.token, timedelta(hours=1), "the sink\0 does not answer")
    assert claim(database) is None  # it rests
    assert info(database, again.run.id).error_message == "the sink\ufffd does not answer"
    execute(database, "UPDATE runs SET not_before = now()")
    taken = claimed(database)
    assert (taken.attempt, taken.run.error_message) == (2, None)


def test_a_run_knows_for_how_long_it_is_stuck(database: Database, target_id: int) -> None:
    add(database)
    run_now(database)

    def rested(token: UUID) -> RunLease:
        do(database, runs.release, token, timedelta(0), "the sink does not answer")
        execute(database, "UPDATE runs SET stuck_since = stuck_since - interval '10 hours'")
        return claimed(database)

    first = claimed(database)
    assert first.stuck_for == timedelta(0)
    once = rested(first.token)
    assert timedelta(hours=10) <= once.stuck_for < timedelta(hours=11)
    twice = rested(once.token)
    assert timedelta(hours=20) <= twice.stuck_for < timedelta(hours=21)
    do(database, runs.note_progress, twice.token, RunProgress(rows_read=1))
    assert rested(twice.token).stuck_for < timedelta(hours=11)
    execute(database, "UPDATE runs SET lease_expires_at = now() - interval '1 second'")
    lease = claimed(database)
    job_id = score(database, lease, target_id, ["a"])
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    writing = claimed(database)
    assert writing.stuck_for == timedelta(0)
    once = rested(writing.token)
    do(database, runs.note_written, once.token, {}, RunProgress(rows_written=1))
    twice = rested(once.token)
    assert twice.stuck_for >= timedelta(hours=20)
    do(database, runs.note_written, twice.token, {"parts": 1}, RunProgress(rows_written=1))
    assert rested(twice.token).stuck_for < timedelta(hours=11)


def test_a_writer_that_dies_leaves_how_far_the_sink_was(database: Database, target_id: int) -> None:
    add(database)
    run_now(database)
    job_id = score(database, claimed(database), target_id, ["a"])
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    dead = claimed(database)
    do(database, runs.note_written, dead.token, {"parts": 3}, RunProgress(rows_written=30))
    expire(database, dead)
    resumed = claimed(database)
    assert (resumed.run.state, resumed.written) == (RunState.WRITING, {"parts": 3})
    assert resumed.run.progress.rows_written == 30


def test_runs_of_a_schedule_wait_for_each_other_and_schedules_do_not(database: Database, target_id: int) -> None:
    for name in ("one", "two"):
        add(database, name, overlap="queue")
    later = run_now(database, "one", NIGHT + timedelta(days=1))
    first = run_now(database, "one", NIGHT)
    other = run_now(database, "two", NIGHT + timedelta(days=2))
    taken = [claimed(database), claimed(database)]
    assert [lease.run.id for lease in taken] == [first.id, other.id]
    assert claim(database) is None
    do(database, runs.fail, taken[0].token, "source_changed", "it changed")
    assert claimed(database).run.id == later.id
    # One that was due before, and came after it began, waits as well.
    run_now(database, "one", NIGHT - timedelta(days=1))
    assert claim(database) is None


def test_many_runners_take_each_run_once(database: Database) -> None:
    for number in range(12):
        add(database, f"s{number}")
        run_now(database, f"s{number}")
    with ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(lambda n: claim(database, runner=f"r{n}"), range(20)))
    found = [lease.run.id for lease in taken if lease is not None]
    assert len(found) == len(set(found))
    rest = 12 - len(found)  # whoever met another at a row went away empty
    assert len([lease for lease in (claim(database) for _ in range(12)) if lease is not None]) == rest


@pytest.mark.parametrize("state", [state for state in JobState if state.terminal])
def test_a_run_whose_job_ended_is_claimed_however_it_ended(database: Database, target_id: int, state: JobState) -> None:
    add(database)
    run_now(database)
    job_id = score(database, claimed(database), target_id, ["a"])
    execute(database, "UPDATE jobs SET state = :state, finished_at = now() WHERE id = :id", id=job_id, state=str(state))
    assert claimed(database).run.state is RunState.WRITING


def test_a_run_whose_job_is_gone_is_claimed(database: Database, target_id: int) -> None:
    add(database)
    run_now(database)
    job_id = score(database, claimed(database), target_id, ["a"])
    execute(database, "DELETE FROM jobs WHERE id = :id", id=job_id)
    lease = claimed(database)
    assert (lease.run.state, lease.run.job_id) == (RunState.WRITING, None)


def test_a_run_of_a_callers_own_is_his_alone(database: Database, target_id: int) -> None:
    lease = do(database, runs.open_run, spec(metadata={"a": 1}), runner="me", lease=MINUTE)
    assert (lease.run.state, lease.run.schedule, lease.run.due_at, lease.attempt) == ("reading", None, None, 1)
    assert lease.run.spec == spec(metadata={"a": 1})
    take: dict[str, Any] = {"runner": "other", "lease": MINUTE}
    with pytest.raises(WrongState, match="carried out by another process"):
        do(database, runs.claim_one, lease.run.id, **take)
    expire(database, lease)
    assert claim(database) is None
    resumed = do(database, runs.claim_one, lease.run.id, **take)
    assert (resumed.run.id, resumed.attempt) == (lease.run.id, 2)
    with pytest.raises(LeaseLost):
        do(database, runs.scoring, lease.token)
    job_id = score(database, resumed, target_id, ["a"])
    with pytest.raises(WrongState, match=f"waits for its job {job_id}"):
        do(database, runs.claim_one, lease.run.id, **take)
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    assert claim(database) is None
    writing = do(database, runs.claim_one, lease.run.id, **take)
    do(database, runs.succeed, writing.token, None, None, None)
    with pytest.raises(WrongState, match="succeeded: there is nothing left"):
        do(database, runs.claim_one, lease.run.id, **take)
    assert do(database, runs.before, lease.run.id) is None


def test_what_is_of_a_schedule_or_does_not_exist_is_not_a_callers(database: Database) -> None:
    add(database)
    run = run_now(database)
    with pytest.raises(WrongState, match="of schedule nightly: runners carry it out"):
        do(database, runs.claim_one, run.id, runner="me", lease=MINUTE)
    for verb in (runs.get, runs.cancel):
        with pytest.raises(RunNotFound, match="no run"):
            do(database, verb, uuid4())
    with pytest.raises(UnknownSchedule, match="no schedule 'none'"):
        do(database, runs.history, "none")


def cancelled(database: Database, run_id: UUID) -> bool:
    return do(database, runs.cancel, run_id)


def test_a_run_is_cancelled_in_every_open_state_with_its_job(database: Database, target_id: int) -> None:
    add(database, overlap="queue")
    queued = run_now(database)
    assert cancelled(database, queued.id)
    assert not cancelled(database, queued.id)

    run_now(database)
    reading = claimed(database)
    receiving = receive(database, reading, target_id, ["a"])
    assert cancelled(database, reading.run.id)
    with pytest.raises(LeaseLost):
        do(database, runs.scoring, reading.token)
    assert do(database, jobs.discard_abandoned, timedelta(0)) == [receiving]

    run_now(database)
    lease = claimed(database)
    job_id = score(database, lease, target_id, ["a"])
    assert cancelled(database, lease.run.id)
    assert do(database, jobs.get, job_id).state is JobState.CANCELLED

    run_now(database)
    job_id = score(database, claimed(database), target_id, ["a"])
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    writing = claimed(database)
    assert cancelled(database, writing.run.id)
    assert do(database, jobs.get, job_id).state is JobState.SUCCEEDED
    assert states(database) == ["cancelled"] * 4

    run_now(database)
    ended = end(database, target_id)
    with pytest.raises(WrongState, match="succeeded: there is nothing left of it to cancel"):
        cancelled(database, ended.id)


def test_the_run_before_is_the_last_that_succeeded(database: Database, target_id: int) -> None:
    add(database, overlap="queue")
    add(database, "other", overlap="queue")
    made = [run_now(database, now=NIGHT + timedelta(days=day)) for day in range(4)]
    assert do(database, runs.before, made[0].id) is None
    first = end(database, target_id)
    do(database, runs.fail, claimed(database).token, "code", "message")
    assert first.id == made[0].id
    for run in made[1:]:
        assert do(database, runs.before, run.id).id == first.id
    alone = run_now(database, "other", NIGHT + timedelta(days=9))
    assert do(database, runs.before, alone.id) is None
    assert [run.id for run in history(database)] == [run.id for run in made]
    assert [run.id for run in do(database, runs.history, "nightly", 2)] == [made[3].id, made[2].id]


def listening(database: Database, **changes: Any) -> None:
    do(database, endpoints.add, CALLBACK, b"secret")
    add(database, spec=spec(callback_url=f"{CALLBACK}?night=1", metadata={"team": "search"}), **changes)


def told(database: Database) -> list[EventBody]:
    rows = query(database, "SELECT body, job_id, run_id, url FROM deliveries ORDER BY id")
    assert all(row.job_id is None and row.run_id is not None for row in rows)
    assert all(row.url == f"{CALLBACK}?night=1" for row in rows)
    return [EventBody.model_validate(row.body) for row in rows]


def test_the_callback_hears_of_a_success_and_of_drift(database: Database, target_id: int) -> None:
    listening(database)
    run = run_now(database)
    job_id = score(database, claimed(database), target_id, ["a"])
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    drift = Drift(rows=9, psi=0.5, over=("psi",))
    do(database, runs.succeed, claimed(database).token, CHANGES, drift, "s3://u:secret@bucket/report.html")
    completed, drifted = told(database)
    assert (completed.type, drifted.type) == ("run.completed", "schedule.drift")
    assert completed.data == drifted.data
    data = completed.data
    assert isinstance(data, RunData)
    assert (data.id, data.schedule, data.due_at, data.state) == (run.id, "nightly", run.due_at, "succeeded")
    assert (data.model, data.changes, data.drift, data.error_code) == ("model@1", CHANGES, drift, None)
    assert data.links.job == job_link(job_id)
    assert data.report == "s3://u:***@bucket/report.html"
    assert data.metadata == {"team": "search"}


def test_the_callback_hears_of_a_failure_and_of_no_drift_within_its_thresholds(
    database: Database, target_id: int
) -> None:
    listening(database)
    run = run_now(database)
    do(database, runs.fail, claimed(database).token, "unknown_model", "model 'm'\0 is \ud800 not " + "x" * 9000)
    [failed] = told(database)
    assert isinstance(failed.data, RunData)
    assert (failed.type, failed.data.id, failed.data.error_code) == ("run.failed", run.id, "unknown_model")
    assert (failed.data.model, failed.data.links.job) == ("model", None)
    assert info(database, run.id).error_message.startswith("model 'm'\ufffd is ? not x")  # type: ignore[union-attr]
    run_now(database)
    end(database, target_id)
    assert [body.type for body in told(database)] == ["run.failed", "run.completed"]
    [delivery, _] = do(database, deliveries.list_newest)
    assert delivery.run_id is not None
    assert delivery.job_id is None


def test_an_endpoint_that_was_disabled_leaves_a_trace(database: Database) -> None:
    listening(database)
    do(database, endpoints.disable, query(database, "SELECT id FROM webhook_endpoints")[0].id, "gone")
    run_now(database)
    do(database, runs.fail, claimed(database).token, "code", "message")
    do(database, deliveries.bury_disabled)
    assert [row.state for row in query(database, "SELECT state FROM deliveries")] == ["dead"]


def test_what_an_open_run_reads_is_not_abandoned(database: Database, target_id: int) -> None:
    add(database)
    run_now(database)
    lease = claimed(database)
    kept = receive(database, lease, target_id, ["a"])
    gone = open_job(database, target_id)
    execute(database, "UPDATE jobs SET received_at = now() - interval '1 day'")
    assert do(database, jobs.discard_abandoned, MINUTE) == [gone]
    do(database, runs.fail, lease.token, "code", "message")
    assert do(database, jobs.discard_abandoned, MINUTE) == [kept]
    assert oldjobs.delete_items(database, kept) == 1


def test_a_reader_and_a_canceller_never_wait_for_each_other(database: Database, target_id: int) -> None:
    """Whoever touches both locks the job first."""
    add(database, overlap="queue")
    for _ in range(5):
        run_now(database)
        lease = claimed(database)
        job_id = submit(database, target_id, ["a"])
        do(database, runs.bind_job, lease.token, job_id)

        def read(connection: Connection, job_id: UUID = job_id, token: UUID = lease.token) -> None:
            jobs.lock(connection, job_id)
            runs.note_progress(connection, token, RunProgress(rows_read=1))

        with ThreadPoolExecutor(4) as pool:
            reads = [pool.submit(do, database, read) for _ in range(3)]
            ends = pool.submit(do, database, runs.cancel, lease.run.id)
        assert ends.result()
        assert all(isinstance(one.exception(), LeaseLost | None) for one in reads)


def test_a_run_that_no_process_lives_through_fails(database: Database, target_id: int) -> None:
    add(database)
    run = run_now(database)
    lease = claimed(database)
    for number in range(runs.MOST_DEATHS):
        assert do(database, lostruns.fail) == []
        assert do(database, lostruns.rescue, "nobody:1") == 0
        expire(database, lease)
        lease = claimed(database, runner=f"host:1:{number}")
    expire(database, lease)
    assert claim(database) is None
    assert do(database, lostruns.fail) == [run.id]
    found = info(database, run.id)
    assert (found.state, found.error_code) == (RunState.FAILED, "runner_lost")


def test_a_run_that_gets_on_outlives_many_processes(database: Database, target_id: int) -> None:
    add(database)
    run_now(database)
    for number in range(2 * runs.MOST_DEATHS):
        lease = claimed(database, runner=f"host:1:{number}")
        do(database, runs.note_progress, lease.token, RunProgress(rows_read=number))
        expire(database, lease)
    assert do(database, lostruns.fail) == []
    lease = claimed(database)
    job_id = score(database, lease, target_id, ["a"])
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    for number in range(2 * runs.MOST_DEATHS):
        lease = claimed(database, runner=f"host:1:{number}")
        do(database, runs.note_written, lease.token, {"parts": number}, RunProgress(rows_written=number))
        expire(database, lease)
    assert do(database, lostruns.fail) == []
    assert claim(database) is not None


def test_what_is_written_anew_after_a_cut_is_no_step_ahead(database: Database, target_id: int) -> None:
    add(database)
    run = run_now(database)
    job_id = score(database, claimed(database), target_id, ["a"])
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    for number in range(runs.MOST_DEATHS + 1):
        lease = claimed(database, runner=f"host:1:{number}")
        do(database, runs.note_written, lease.token, {}, RunProgress(rows_written=100_000))
        do(database, runs.note_progress, lease.token, RunProgress(rows_written=150_000))
        expire(database, lease)
    assert do(database, lostruns.fail) == [run.id]

    run = run_now(database)
    job_id = score(database, claimed(database), target_id, ["a"])
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    for number in range(runs.MOST_DEATHS + 1):  # the first gets on, the others only do the same again
        lease = claimed(database, runner=f"host:1:{number}")
        do(database, runs.note_written, lease.token, {"parts": 1}, RunProgress(rows_written=1))
        expire(database, lease)
    assert do(database, lostruns.fail) == [run.id]


def test_who_was_cut_off_from_postgres_did_not_die(database: Database) -> None:
    add(database)
    run_now(database)
    for _ in range(2 * runs.MOST_DEATHS):
        expire(database, claimed(database, runner="host:1:a"))
    assert do(database, lostruns.fail) == []
    assert query(database, "SELECT deaths FROM runs") == [(0,)]
    claimed(database, runner="host:1:b")
    assert query(database, "SELECT deaths FROM runs") == [(1,)]


def test_a_run_of_a_callers_own_that_is_lost_is_not_waited_for(database: Database) -> None:
    lease = do(database, runs.open_run, spec(), runner="me:0:a", lease=MINUTE)
    for number in range(runs.MOST_DEATHS):
        expire(database, lease)
        lease = do(database, runs.claim_one, lease.run.id, runner=f"me:0:{number}", lease=MINUTE)
    with pytest.raises(WrongState, match="carried out by another process: wait"):
        do(database, runs.claim_one, lease.run.id, runner="me:0:b", lease=MINUTE)
    expire(database, lease)
    with pytest.raises(WrongState, match="6 processes .* died, one after the other; begin a new one"):
        do(database, runs.claim_one, lease.run.id, runner="me:0:b", lease=MINUTE)


def test_leases_of_a_runner_that_died_are_over_at_once(database: Database) -> None:
    add(database)
    run = run_now(database)
    lease = claimed(database, runner="host:11:a")
    assert claim(database) is None
    assert do(database, lostruns.rescue, "host:1") == 0
    assert do(database, lostruns.rescue, "host:11") == 1
    again = claimed(database)
    assert (again.run.id, again.attempt) == (run.id, 2)
    assert again.token != lease.token
