"""Jobs: one named function for each transition, each a guarded UPDATE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, SmallInteger, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from contracts.errors import DatabaseUnavailable, JobNotFound, WrongState
from contracts.jobs import JobCounts, JobInfo, JobStats
from contracts.names import Task, split_reference
from contracts.states import TERMINAL_JOB_STATES, JobState, Priority
from storage import locks

_SELECT = """
    SELECT jobs.*, targets.params, models.name AS model_name, models.version AS model_version, models.task, progress
    FROM jobs JOIN targets ON targets.id = jobs.target_id JOIN models ON models.id = targets.model_id
        LEFT JOIN compressions ON compressions.job_id = jobs.id
"""


def _info(row: Row[Any]) -> JobInfo:
    return JobInfo(
        id=row.id,
        state=JobState(row.state),
        model=f"{row.model_name}@{row.model_version}",
        task=row.task,
        params=row.params,
        pool=row.pool,
        priority=Priority.of_rank(row.priority),
        metadata=row._mapping["metadata"],
        idempotency_key=row.idempotency_key,
        retry_of=row.retry_of,
        callback_url=row.callback_url,
        counts=JobCounts(
            items=row.items,
            distinct=row.distinct_inputs,
            cached=row.cached,
            computed=row.computed,
            failed=row.failed,
            truncated=row.truncated,
        ),
        stats=JobStats(
            micro_batches=row.micro_batches,
            real_tokens=row.real_tokens,
            padded_tokens=row.padded_tokens,
            budget_tokens=row.budget_tokens,
        ),
        error_code=row.error_code,
        error_message=row.error_message,
        created_at=row.created_at,
        queued_at=row.queued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        expires_at=row.expires_at,
        progress=row.progress,
    )


def get(connection: Connection, job_id: UUID) -> JobInfo:
    """The job as its row says.

    Raises:
        JobNotFound: There is none of that id.
    """
    row = connection.execute(text(_SELECT + "WHERE jobs.id = :id"), {"id": job_id}).first()
    if row is None:
        raise _not_found(job_id)
    return _info(row)


def _not_found(job_id: UUID) -> JobNotFound:
    return JobNotFound(f"no job {job_id}; `batchmill jobs list` shows those that exist")


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list; what is None or empty asks for nothing."""

    states: Sequence[JobState] = ()
    model: str | None = None
    """`name`, of any version, or `name@version`."""
    task: Task | None = None
    pool: str | None = None
    since: datetime | None = None
    """Submitted then or later."""
    until: datetime | None = None
    """Submitted before."""


def list_newest(connection: Connection, wanted: JobFilter | None = None, *, limit: int = 50) -> list[JobInfo]:
    """The newest jobs first, of those that are wanted."""
    wanted = wanted or JobFilter()
    name, version = split_reference(wanted.model) if wanted.model is not None else (None, None)
    # Only what is asked for is a condition: the planner sees which index serves it.
    conditions = {
        "jobs.state = ANY(:states)": [str(state) for state in wanted.states] or None,
        "models.name = :name": name,
        "models.version = :version": version,
        "models.task = :task": wanted.task,
        "jobs.pool = :pool": wanted.pool,
        "jobs.created_at >= :since": wanted.since,
        "jobs.created_at < :until": wanted.until,
    }
    asked = {condition: value for condition, value in conditions.items() if value is not None}
    where = f"WHERE {' AND '.join(asked)} " if asked else ""
    values = {condition.partition(":")[2].rstrip(")"): value for condition, value in asked.items()}
    rows = connection.execute(
        text(f"{_SELECT} {where} ORDER BY jobs.created_at DESC, jobs.id DESC LIMIT :limit"), {**values, "limit": limit}
    )
    return [_info(row) for row in rows]


@dataclass(frozen=True)
class KeyHolder:
    """The job that an idempotency key belongs to."""

    job_id: UUID
    content_digest: bytes


def key_holder(connection: Connection, idempotency_key: str) -> KeyHolder | None:
    """The sealed job that holds the key, if any; a key is taken when its job is sealed."""
    row = connection.execute(
        text("SELECT id, content_digest FROM jobs WHERE idempotency_key = :key"), {"key": idempotency_key}
    ).first()
    return None if row is None else KeyHolder(row.id, bytes(row.content_digest))


@dataclass(frozen=True)
class Listener:
    """Who hears of a job's events."""

    url: str
    endpoint_id: int
    progress_at: tuple[int, ...] = ()
    """Percentages at which `job.progress` is announced, ascending."""


def open_job(
    connection: Connection,
    *,
    target_id: int,
    pool: str,
    priority: Priority,
    metadata: Mapping[str, Any],
    listener: Listener | None = None,
    traceparent: str | None = None,
) -> UUID:
    """A new job that receives items."""
    statement = text("""
        INSERT INTO jobs (target_id, pool, state, priority, metadata, callback_url, endpoint_id, progress_at,
                          traceparent)
        VALUES (:target_id, :pool, 'receiving', :priority, :metadata, :callback_url, :endpoint_id, :progress_at,
                :traceparent)
        RETURNING id
    """).bindparams(bindparam("metadata", type_=JSONB), bindparam("progress_at", type_=ARRAY(SmallInteger)))
    values = {
        "target_id": target_id,
        "pool": pool,
        "priority": priority.rank,
        "metadata": dict(metadata),
        "callback_url": listener and listener.url,
        "endpoint_id": listener and listener.endpoint_id,
        "progress_at": list(listener.progress_at) if listener else [],
        "traceparent": traceparent,
    }
    job_id: UUID = connection.execute(statement, values).scalar_one()
    return job_id


def count_received(
    connection: Connection, job_id: UUID, lines: int, content_digest: bytes | None = None, *, before: int = 0
) -> None:
    """Note that lines of a chunk are added; no purge runs from here to the end of the transaction.

    The digest is that of all lines so far, for whoever goes on with a submission that was cut. The moment is taken once
    purges are kept out, so that one that began at T finds every item added since in the jobs that received something
    at T or later.

    Raises:
        WrongState: The job is not being received: it was taken for abandoned, and removed.
        DatabaseUnavailable: The lines before these are not there, as the server crashed.
    """
    locks.share_with_purge(connection)
    found = connection.execute(
        text("""
            UPDATE jobs SET items = items + :lines, received_at = clock_timestamp(), content_digest = :digest
            WHERE id = :id AND state = 'receiving' AND items = :before RETURNING id
        """),
        {"id": job_id, "lines": lines, "digest": content_digest, "before": before},
    ).first()
    if found is None:
        check_received(connection, job_id, before)


def check_received(connection: Connection, job_id: UUID, lines: int) -> None:
    """See that all lines are there that were handed over: chunks are committed without waiting for the disk.

    Raises:
        WrongState: The job is not being received (it was taken for abandoned, and removed), or someone else sends too.
        DatabaseUnavailable: Some are not, as the server crashed.
    """
    found = arrived(connection, job_id)
    if found is None:
        raise WrongState(f"job {job_id} was removed: nothing of it arrived for too long; submit again")
    if found.lines > lines:
        raise WrongState(f"job {job_id} has {found.lines:,} lines, and {lines:,} were sent: someone else sends too")
    if found.lines < lines:
        raise DatabaseUnavailable(
            f"job {job_id}: {found.lines:,} of {lines:,} lines are left, as Postgres crashed: send them again"
        )


@dataclass(frozen=True)
class Arrived:
    """What has arrived of a job that is being received."""

    target_id: int
    lines: int
    content_digest: bytes | None
    """Of these lines; None of none."""


def arrived(connection: Connection, job_id: UUID) -> Arrived | None:
    """What has arrived of a job; None unless it is being received."""
    row = connection.execute(
        text("SELECT target_id, items, content_digest FROM jobs WHERE id = :id AND state = 'receiving'"), {"id": job_id}
    ).first()
    return None if row is None else Arrived(row.target_id, row.items, row.content_digest and bytes(row.content_digest))


def claim_key(connection: Connection, job_id: UUID, idempotency_key: str, content_digest: bytes) -> KeyHolder:
    """Give the key to the job unless another holds it; who holds it then."""
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 1))"), {"key": idempotency_key})
    holder = key_holder(connection, idempotency_key)
    if holder is not None:
        return holder
    connection.execute(
        text("UPDATE jobs SET idempotency_key = :key, content_digest = :digest WHERE id = :id"),
        {"id": job_id, "key": idempotency_key, "digest": content_digest},
    )
    return KeyHolder(job_id, content_digest)


def discard(connection: Connection, job_id: UUID) -> bool:
    """Remove a job that is still being received; whether it was there.

    Its lines, of which there may be many, belong to no job then: `oldjobs.delete_items` removes them, or a purge.
    """
    statement = text("DELETE FROM jobs WHERE id = :id AND state = 'receiving' RETURNING id")
    return connection.execute(statement, {"id": job_id}).first() is not None


def discard_abandoned(connection: Connection, older_than: timedelta) -> list[UUID]:
    """Remove jobs whose client sent nothing for so long; what an open run reads waits for whoever goes on with it."""
    rows = connection.execute(
        text("""
            SELECT id FROM jobs WHERE state = 'receiving' AND received_at < now() - :age
              AND NOT EXISTS (SELECT FROM runs WHERE job_id = jobs.id
                              AND runs.state IN ('queued', 'reading', 'scoring', 'writing'))
            FOR UPDATE SKIP LOCKED
        """),
        {"age": older_than},
    ).scalars()
    return [job_id for job_id in rows.all() if discard(connection, job_id)]


def lock(connection: Connection, job_id: UUID) -> JobState:
    """Hold the job's row until the transaction ends; whoever touches a job and its shards does this first.

    Returns:
        Its state, which no one else changes now.

    Raises:
        JobNotFound: There is none of that id.
    """
    statement = text("SELECT state FROM jobs WHERE id = :id FOR NO KEY UPDATE")
    state = connection.execute(statement, {"id": job_id}).scalar_one_or_none()
    if state is None:
        raise _not_found(job_id)
    return JobState(state)


def unfinished(connection: Connection, job_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the jobs that exist and have not ended."""
    rows = connection.execute(
        text("SELECT id FROM jobs WHERE id = ANY(:ids) AND NOT state = ANY(:ended)"),
        {"ids": list(job_ids), "ended": [str(state) for state in TERMINAL_JOB_STATES]},
    )
    return set(rows.scalars())


def target_id(connection: Connection, job_id: UUID) -> int:
    """The target that the job computes."""
    statement = text("SELECT target_id FROM jobs WHERE id = :id")
    return int(connection.execute(statement, {"id": job_id}).scalar_one())
