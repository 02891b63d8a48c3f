"""Every verb in every state, and who wins when two meet."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy import Connection, text

from contracts.errors import ItemFailed, JobNotFound, LeaseLost, WrongState
from contracts.jobs import JobCounts, JobInfo
from contracts.states import JobState, Priority
from storage import control, jobs, pages, shards
from storage.counting import ShardOutcome
from storage.database import Database
from tests.jobs import (
    MINUTE,
    append,
    as_lines,
    claim,
    claimed,
    execute,
    finish,
    make_target,
    open_job,
    query,
    seal,
    store,
    submit,
)

LIVE = (JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)


@pytest.fixture
def target_id(database: Database) -> int:
    return make_target(database)


def info(database: Database, job_id: UUID) -> JobInfo:
    with database.transaction() as connection:
        return jobs.get(connection, job_id)


def shard_states(database: Database, job_id: UUID) -> list[str]:
    rows = query(database, "SELECT state FROM shards WHERE job_id = :id ORDER BY ordinal", id=job_id)
    return [row.state for row in rows]


def listened(database: Database, job_id: UUID) -> None:
    """Have somebody hear of the job's events."""
    [row] = query(
        database,
        "INSERT INTO webhook_endpoints (url, secret) VALUES (:url, '') RETURNING id",
        url=f"https://receiver.example/{job_id}",
    )
    execute(database, "UPDATE jobs SET endpoint_id = :e, callback_url = 'x' WHERE id = :id", e=row.id, id=job_id)


def announced(database: Database, job_id: UUID) -> list[str]:
    return [row.event for row in query(database, "SELECT event FROM deliveries WHERE job_id = :id", id=job_id)]


def job_in(database: Database, target_id: int, state: JobState) -> UUID:
    """A job that came to a state by the ways that lead there."""
    if state is JobState.RECEIVING:
        return open_job(database, target_id)
    job_id = submit(database, target_id, [f"{state} {number}" for number in range(4)], per_shard=2)
    listened(database, job_id)
    if state is JobState.QUEUED:
        return job_id
    lease = claimed(database)
    with database.transaction() as connection:
        match state:
            case JobState.PAUSED:
                control.pause(connection, job_id)
            case JobState.CANCELLED:
                control.cancel(connection, job_id)
            case JobState.FAILED:
                control.fail(connection, job_id, "broken", "it broke")
            case JobState.EXPIRED:
                connection.execute(text("UPDATE jobs SET expires_at = now() WHERE id = :id"), {"id": job_id})
                control.expire_due(connection)
    if state is JobState.SUCCEEDED:
        finish(database, lease)
        finish(database, claimed(database))
    assert info(database, job_id).state is state
    return job_id


def _cancel(connection: Connection, job_id: UUID) -> bool:
    return control.cancel(connection, job_id)


def _pause(connection: Connection, job_id: UUID) -> bool:
    return control.pause(connection, job_id)


def _resume(connection: Connection, job_id: UUID) -> bool:
    return control.resume(connection, job_id)


def _fail(connection: Connection, job_id: UUID) -> bool:
    return control.fail(connection, job_id, "broken", "it broke")


def _trip(connection: Connection, job_id: UUID) -> bool:
    return control.trip(connection, job_id, "breaker", "all fail")


def _expire(connection: Connection, job_id: UUID) -> bool:
    connection.execute(text("UPDATE jobs SET expires_at = now() WHERE id = :id"), {"id": job_id})
    return job_id in control.expire_due(connection)


VERBS: dict[str, Callable[[Connection, UUID], bool]] = {
    "cancel": _cancel,
    "pause": _pause,
    "resume": _resume,
    "fail": _fail,
    "trip": _trip,
    "expire": _expire,
}
MOVES = {
    "cancel": dict.fromkeys(LIVE, JobState.CANCELLED),
    "pause": {JobState.QUEUED: JobState.PAUSED, JobState.RUNNING: JobState.PAUSED},
    "resume": {JobState.PAUSED: JobState.RUNNING},
    "fail": dict.fromkeys(LIVE, JobState.FAILED),
    "trip": {JobState.RUNNING: JobState.PAUSED},
    "expire": dict.fromkeys(LIVE, JobState.EXPIRED),
}
"""Where a verb leads."""
REFUSED = {
    "cancel": {JobState.RECEIVING, JobState.SUCCEEDED, JobState.FAILED, JobState.EXPIRED},
    "pause": {JobState.RECEIVING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED},
    "resume": {JobState.RECEIVING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED},
}
"""Where a caller is told that the state forbids it; anywhere else nothing happens."""


def everything(database: Database, job_id: UUID) -> list[Any]:
    state = query(database, "SELECT * FROM jobs WHERE id = :id", id=job_id)[0]._asdict()
    del state["expires_at"]  # the test sets it
    return [state, shard_states(database, job_id), announced(database, job_id)]


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_in_each_state(database: Database, target_id: int, verb: str, state: JobState) -> None:
    job_id = job_in(database, target_id, state)
    before = everything(database, job_id)
    told = announced(database, job_id)
    if state in REFUSED.get(verb, ()):
        with (
            pytest.raises(WrongState, match=str(job_id) + (".*received" if state == "receiving" else f" is {state}")),
            database.transaction() as connection,
        ):
            VERBS[verb](connection, job_id)
        assert everything(database, job_id) == before
        return
    with database.transaction() as connection:
        moved = VERBS[verb](connection, job_id)
    after = MOVES[verb].get(state)
    assert moved == (after is not None)
    if after is None:
        assert everything(database, job_id) == before
        return
    assert info(database, job_id).state is after
    ended = after.terminal
    assert (info(database, job_id).finished_at is not None) == ended
    assert announced(database, job_id) == told + ([f"job.{after}"] if ended else [])
    assert ("cancelled" in shard_states(database, job_id)) == ended
    # Again, it changes nothing.
    once = everything(database, job_id)
    with database.transaction() as connection:
        assert not VERBS[verb](connection, job_id)
    assert everything(database, job_id) == once


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume"])
def test_a_job_that_does_not_exist(database: Database, verb: str) -> None:
    with pytest.raises(JobNotFound), database.transaction() as connection:
        VERBS[verb](connection, uuid4())


def test_leases_end_with_the_job_and_results_stay(database: Database, target_id: int) -> None:
    job_id = submit(database, target_id, "abcd", per_shard=2)
    done, held = claimed(database), claimed(database)
    finish(database, done)
    store(database, target_id, held.shard_id, held.input_ids[:1])
    with database.transaction() as connection:
        assert control.cancel(connection, job_id)
    with database.transaction() as connection:
        assert shards.renew(connection, [held.token], MINUTE) == set()
    with pytest.raises(LeaseLost), database.transaction() as connection:
        shards.close(connection, held, ShardOutcome({}))
    assert info(database, job_id).counts == JobCounts(items=4, distinct=4, computed=2)
    # What was stored of the shard that was cut short serves the next job.
    assert info(database, submit(database, target_id, "abcd")).counts.cached == 3


def test_what_a_job_that_ended_says_never_changes(database: Database, target_id: int) -> None:
    """Results that come later, from the shard that was cut short or another job, are not the job's."""
    seen = submit(database, target_id, "a")
    finish(database, claimed(database))
    assert info(database, seen).state is JobState.SUCCEEDED
    job_id = submit(database, target_id, "abcdefa", per_shard=2)
    done, held = claimed(database), claimed(database)
    finish(database, done, {done.input_ids[0]: ItemFailed("bad", "it is")}, truncated=done.input_ids[1:])
    with database.transaction() as connection:
        assert control.cancel(connection, job_id)

    def said() -> tuple[list[Any], ...]:
        with database.transaction() as connection:
            withheld = pages.withheld(connection, job_id)
            assert withheld.tolist() == sorted(withheld.tolist())
            page = pages.read(
                connection,
                job_id=job_id,
                target_id=target_id,
                column="embedding",
                start=0,
                stop=7,
                withheld=withheld,
            )
        return (
            np.asarray(page.outputs).tolist(),
            page.present.tolist(),
            page.errors,
            page.cached.tolist(),
            page.truncated.tolist(),
        )

    first = said()
    present, errors, cached = first[1], first[2], first[3]
    # Of the first and the last line there was a result; one more was computed, and one failed.
    assert (sum(present), present[0], present[6]) == (3, True, True)
    assert [error for error in errors if error] == [("bad", "it is")]
    assert cached == [True, False, False, False, False, False, True]
    counts = info(database, job_id).counts
    assert (counts.cached, counts.computed, counts.failed, counts.waiting) == (1, 1, 1, 3)

    store(database, target_id, held.shard_id, held.input_ids)  # a zombie's
    other = submit(database, target_id, "abcdef")
    while (lease := claim(database)) is not None:
        finish(database, lease)
    assert info(database, other).state is JobState.SUCCEEDED
    assert said() == first


@pytest.mark.parametrize("column", ["output", "embedding_bits"])
def test_withholding_in_other_columns(database: Database, target_id: int, column: str) -> None:
    job_id = submit(database, target_id, "ab", per_shard=1)
    outputs: Any = [{"score": 1}] if column == "output" else np.array([[255]], np.uint8)
    done, held = claimed(database), claimed(database)
    store(database, target_id, done.shard_id, done.input_ids, outputs=outputs)
    with database.transaction() as connection:
        shards.close(connection, done, ShardOutcome({}))
        control.cancel(connection, job_id)
    store(database, target_id, held.shard_id, held.input_ids, outputs=outputs)
    with database.transaction() as connection:
        withheld = pages.withheld(connection, job_id)
        for at in range(2):  # pages of one, too
            page = pages.read(
                connection,
                job_id=job_id,
                target_id=target_id,
                column=column,
                start=at,
                stop=at + 1,
                withheld=withheld,
            )
            [(input_id,)] = query(database, "SELECT input_id FROM items WHERE position = :at", at=at)
            assert page.present.tolist() == [input_id in done.input_ids]
            assert np.any(page.outputs[0] != None if column == "output" else page.outputs[0]) == page.present[0]  # noqa: E711


def test_only_jobs_whose_time_is_over_expire(database: Database, target_id: int) -> None:
    def waiting(expires_in: timedelta | None) -> UUID:
        job_id = open_job(database, target_id)
        append(database, job_id, as_lines(["x"]))
        seal(database, job_id, target_id, expires_in=expires_in)
        return job_id

    over, later, never = waiting(timedelta(milliseconds=1)), waiting(MINUTE), waiting(None)
    execute(database, "SELECT pg_sleep(0.002)")
    # Nobody claims what is over, also before a tick comes.
    assert {claimed(database).job_id, *(lease.job_id for lease in iter(lambda: claim(database), None))} <= {
        later,
        never,
    }
    with database.transaction() as connection:
        assert control.expire_due(connection) == [over]
        assert control.expire_due(connection) == []
    assert info(database, over).state is JobState.EXPIRED
    assert not info(database, later).state.terminal
    assert not info(database, never).state.terminal
    expires_at, queued_at = info(database, later).expires_at, info(database, later).queued_at
    assert expires_at is not None
    assert queued_at is not None
    assert expires_at - queued_at == MINUTE


def test_a_job_that_is_held_expires_at_the_next_tick(database: Database, target_id: int) -> None:
    job_id = job_in(database, target_id, JobState.RUNNING)
    execute(database, "UPDATE jobs SET expires_at = now() WHERE id = :id", id=job_id)
    with database.transaction() as held:
        jobs.lock(held, job_id)
        with database.transaction() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '2s'"))
            assert control.expire_due(connection) == []
    with database.transaction() as connection:
        assert control.expire_due(connection) == [job_id]


def test_a_paused_job_is_not_claimed_and_its_last_shard_ends_it(database: Database, target_id: int) -> None:
    job_id = submit(database, target_id, "ab", per_shard=1)
    lease = claimed(database)
    with database.transaction() as connection:
        control.pause(connection, job_id)
    assert claim(database) is None
    finish(database, lease)
    assert info(database, job_id).state is JobState.PAUSED
    with database.transaction() as connection:
        control.resume(connection, job_id)
    last = claimed(database)
    with database.transaction() as connection:
        control.trip(connection, job_id, "breaker", "all fail")
    paused = info(database, job_id)
    assert (paused.state, paused.error_code, paused.error_message) == (JobState.PAUSED, "breaker", "all fail")
    assert finish(database, last)
    done = info(database, job_id)
    assert (done.state, done.error_code) == (JobState.SUCCEEDED, None)


def test_resuming_forgets_why_and_takes_its_place_among_the_others(database: Database, target_id: int) -> None:
    queued = submit(database, target_id, "ab")
    with database.transaction() as connection:
        control.pause(connection, queued)
        control.resume(connection, queued)
    assert info(database, queued).state is JobState.QUEUED  # it never began
    claimed(database)
    execute(database, "UPDATE jobs SET failed_in_row = 7 WHERE id = :id", id=queued)
    with database.transaction() as connection:
        control.trip(connection, queued, "breaker", "all fail")
    other = submit(database, target_id, "cd")
    bulk = open_job(database, target_id, priority=Priority.BULK)
    execute(database, "UPDATE jobs SET service = 5000 WHERE id = :id", id=other)
    execute(database, "UPDATE jobs SET service = 1000000, state = 'queued' WHERE id = :id", id=bulk)
    with database.transaction() as connection:
        control.resume(connection, queued)
    [row] = query(database, "SELECT * FROM jobs WHERE id = :id", id=queued)
    assert (row.state, row.error_code, row.error_message, row.failed_in_row) == ("running", None, None, 0)
    # Not at 0, or it would be served alone until it had caught up.
    assert row.service == 5000


@pytest.mark.parametrize("round_", range(10))
def test_cancel_and_the_close_of_the_last_shard_meet_and_one_wins(
    database: Database, target_id: int, round_: int
) -> None:
    job_id = submit(database, target_id, [f"round {round_}"])
    listened(database, job_id)
    lease = claimed(database)
    store(database, target_id, lease.shard_id, lease.input_ids)
    barrier = threading.Barrier(2)

    def cancel() -> bool:
        barrier.wait(10)
        try:
            with database.transaction() as connection:
                return control.cancel(connection, job_id)
        except WrongState:
            return False

    def close() -> bool:
        barrier.wait(10)
        try:
            with database.transaction() as connection:
                return shards.close(connection, lease, ShardOutcome({}))
        except LeaseLost:
            return False

    with ThreadPoolExecutor(2) as pool:
        cancelled, closed = (future.result() for future in [pool.submit(cancel), pool.submit(close)])
    assert cancelled != closed
    found = info(database, job_id)
    assert found.state is (JobState.CANCELLED if cancelled else JobState.SUCCEEDED)
    assert found.counts.computed == int(closed)
    assert announced(database, job_id) == ["job.cancelled" if cancelled else "job.completed"]
