"""What ends, halts or continues a job that was accepted: one named function for each transition.

Shards that are not done when a job ends are cancelled with it. Whoever computes one finds its lease gone; results
that it stored stay in the cache.
"""

from uuid import UUID

from sqlalchemy import Connection, text

from contracts.events import EVENT_OF
from contracts.states import JobState
from storage import events, jobs

_END = text("""
    UPDATE jobs SET state = :state, error_code = :code, error_message = :message, finished_at = now(),
                    open_shards = 0
    WHERE id = :id AND state IN ('queued', 'running', 'paused') RETURNING id
""")
_CANCEL_SHARDS = text("""
    UPDATE shards SET state = 'cancelled', token = NULL, lease_expires_at = NULL, finished_at = now()
    WHERE id IN (SELECT id FROM shards WHERE job_id = :id AND state IN ('queued', 'leased')
                 ORDER BY id FOR NO KEY UPDATE)
""")


def fail(connection: Connection, job_id: UUID, code: str, message: str) -> bool:
    """queued, running, paused -> failed: the job as a whole cannot run; whether this call did it."""
    return _end(connection, job_id, JobState.FAILED, code, message)


def _end(
    connection: Connection, job_id: UUID, state: JobState, code: str | None = None, message: str | None = None
) -> bool:
    jobs.lock(connection, job_id)
    values = {"id": job_id, "state": str(state), "code": code, "message": message}
    if connection.execute(_END, values).first() is None:
        return False
    connection.execute(_CANCEL_SHARDS, {"id": job_id})
    events.announce(connection, job_id, EVENT_OF[state])
    return True
