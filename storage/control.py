"""What ends, halts or continues a job that was accepted: one named function for each transition.

Shards that are not done when a job ends are cancelled with it. Whoever computes one finds its lease gone; results
that it stored stay in the cache. Each function is safe to repeat: one that finds its work done changes nothing.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as UUID_TYPE

from contracts.errors import WrongState
from contracts.events import EVENT_OF
from contracts.states import JobState
from storage import events, jobs

_IDS = bindparam("ids", type_=ARRAY(UUID_TYPE))
_END = text("""
    UPDATE jobs SET state = :state, error_code = :code, error_message = :message, finished_at = now(),
                    open_shards = 0
    WHERE id = ANY(:ids) AND state IN ('queued', 'running', 'paused') RETURNING id
""").bindparams(_IDS)
# Of all the jobs in one order, in which the heartbeat takes them too, or the two could wait for each other.
_CANCEL_SHARDS = text("""
    UPDATE shards SET state = 'cancelled', token = NULL, lease_expires_at = NULL, finished_at = now()
    WHERE id IN (SELECT id FROM shards WHERE job_id = ANY(:ids) AND state IN ('queued', 'leased')
                 ORDER BY id FOR NO KEY UPDATE)
""").bindparams(_IDS)
_DUE = text("""
    SELECT id FROM jobs WHERE state IN ('queued', 'running', 'paused') AND expires_at <= now()
    ORDER BY id LIMIT :most FOR NO KEY UPDATE SKIP LOCKED
""")
_PAUSE = text("UPDATE jobs SET state = 'paused' WHERE id = :id AND state IN ('queued', 'running') RETURNING id")
_TRIP = text("""
    UPDATE jobs SET state = 'paused', error_code = :code, error_message = :message
    WHERE id = :id AND state = 'running' RETURNING id
""")
# What it was served counts from where its class stands now, as for a new job: it must not catch up at the cost of all.
_RESUME = text("""
    UPDATE jobs SET
        state = CASE WHEN started_at IS NULL THEN 'queued' ELSE 'running' END,
        error_code = NULL, error_message = NULL, failed_in_row = 0,
        service = greatest(service,
            (SELECT min(service) FROM jobs AS other
             WHERE other.state IN ('queued', 'running') AND other.pool = jobs.pool
               AND other.priority = jobs.priority))
    WHERE id = :id AND state = 'paused' RETURNING id
""")


def fail(connection: Connection, job_id: UUID, code: str, message: str) -> bool:
    """queued, running, paused -> failed: the job as a whole cannot run; whether this call did it."""
    jobs.lock(connection, job_id)
    return bool(_end(connection, [job_id], JobState.FAILED, code, message))


def cancel(connection: Connection, job_id: UUID) -> bool:
    """queued, running, paused -> cancelled; whether this call did it, and not one before.

    Raises:
        JobNotFound: There is none of that id.
        WrongState: It has ended in another way, or is still being received.
    """
    state = jobs.lock(connection, job_id)
    if state is JobState.RECEIVING:
        raise _being_received(job_id)
    if state.terminal and state is not JobState.CANCELLED:
        raise WrongState(f"job {job_id} is {state}: there is nothing left of it to cancel")
    return bool(_end(connection, [job_id], JobState.CANCELLED))


def expire_due(connection: Connection, most: int = 100) -> list[UUID]:
    """queued, running, paused -> expired, for so many jobs at most whose time is over; which these were.

    A job that is changed at this moment is left to the next call.
    """
    due = list(connection.execute(_DUE, {"most": most}).scalars())
    return _end(connection, due, JobState.EXPIRED) if due else []


def pause(connection: Connection, job_id: UUID) -> bool:
    """queued, running -> paused: what is leased is finished, nothing more is claimed; whether this call did it.

    Raises:
        JobNotFound: There is none of that id.
        WrongState: It has ended, or is still being received.
    """
    state = jobs.lock(connection, job_id)
    if state is JobState.RECEIVING:
        raise _being_received(job_id)
    if state.terminal:
        raise WrongState(f"job {job_id} is {state}: only a job that goes on can be paused")
    return connection.execute(_PAUSE, {"id": job_id}).first() is not None


def trip(connection: Connection, job_id: UUID, code: str, message: str) -> bool:
    """Running -> paused, with the reason, for whoever is to mend it and resume the job; whether this call did it."""
    jobs.lock(connection, job_id)
    return connection.execute(_TRIP, {"id": job_id, "code": code, "message": message}).first() is not None


def resume(connection: Connection, job_id: UUID) -> bool:
    """Paused -> running, or queued when it never began; whether this call did it.

    Workers hear of it by tickets, which are the caller's to publish.

    Raises:
        JobNotFound: There is none of that id.
        WrongState: It has ended, or is still being received.
    """
    state = jobs.lock(connection, job_id)
    if state is JobState.RECEIVING:
        raise _being_received(job_id)
    if state.terminal:
        raise WrongState(
            f"job {job_id} is {state} for good; what it has no output for, a new job computes: "
            f"job.retry_failed() or `batchmill jobs retry-failed {job_id}`"
        )
    return connection.execute(_RESUME, {"id": job_id}).first() is not None


def _end(
    connection: Connection,
    job_ids: Sequence[UUID],
    state: JobState,
    code: str | None = None,
    message: str | None = None,
) -> list[UUID]:
    """End those of the jobs, which are locked, that have not ended; which these were."""
    values = {"ids": list(job_ids), "state": str(state), "code": code, "message": message}
    ended = list(connection.execute(_END, values).scalars())
    if ended:
        connection.execute(_CANCEL_SHARDS, {"ids": ended})
    for job_id in ended:
        events.announce(connection, job_id, EVENT_OF[state])
    return ended


def _being_received(job_id: UUID) -> WrongState:
    return WrongState(
        f"job {job_id} is still being received: wait until it is submitted, or end the client that submits it, "
        "and nothing of it counts"
    )
