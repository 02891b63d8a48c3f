"""Jobs: one named function for each transition, each a guarded UPDATE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from contracts.errors import JobNotFound, WrongState
from contracts.jobs import JobCounts, JobInfo, JobStats
from contracts.states import JobState, Priority

FEWEST_SHARDS = 32
SMALLEST_SHARD = 2048
"""A job is cut into so many shards at least, so that several workers can share it, unless they would hold fewer
estimated tokens than this."""

_SELECT = """
    SELECT jobs.*, targets.params, models.name AS model_name, models.version AS model_version, models.task
    FROM jobs JOIN targets ON targets.id = jobs.target_id JOIN models ON models.id = targets.model_id
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
    )


def get(connection: Connection, job_id: UUID) -> JobInfo:
    """The job as its row says.

    Raises:
        JobNotFound: There is none of that id.
    """
    row = connection.execute(text(_SELECT + "WHERE jobs.id = :id"), {"id": job_id}).first()
    if row is None:
        raise JobNotFound(f"no job {job_id}; `batchmill jobs list` shows those that exist")
    return _info(row)


def list_newest(connection: Connection, *, states: Sequence[JobState] = (), limit: int = 50) -> list[JobInfo]:
    """The newest jobs first; those in some states only, where any are named."""
    rows = connection.execute(
        text(
            _SELECT
            + "WHERE cardinality(CAST(:states AS text[])) = 0 OR jobs.state = ANY(:states) "
            + "ORDER BY jobs.created_at DESC, jobs.id DESC LIMIT :limit"
        ),
        {"states": [str(state) for state in states], "limit": limit},
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


def open_job(
    connection: Connection, *, target_id: int, pool: str, priority: Priority, metadata: Mapping[str, Any]
) -> UUID:
    """A new job that receives items."""
    statement = text("""
        INSERT INTO jobs (target_id, pool, state, priority, metadata)
        VALUES (:target_id, :pool, 'receiving', :priority, :metadata) RETURNING id
    """).bindparams(bindparam("metadata", type_=JSONB))
    values = {"target_id": target_id, "pool": pool, "priority": priority.rank, "metadata": dict(metadata)}
    job_id: UUID = connection.execute(statement, values).scalar_one()
    return job_id


def count_received(connection: Connection, job_id: UUID, lines: int) -> None:
    """Note that lines of a chunk were added.

    Raises:
        WrongState: The job is not being received: it was taken for abandoned, and removed.
    """
    found = connection.execute(
        text("""
            UPDATE jobs SET items = items + :lines, received_at = now()
            WHERE id = :id AND state = 'receiving' RETURNING id
        """),
        {"id": job_id, "lines": lines},
    ).first()
    if found is None:
        raise WrongState(f"job {job_id} was removed: nothing of it arrived for too long; submit again")


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
    """Remove a job that is still being received, with its lines; whether it was there."""
    gone = connection.execute(
        text("DELETE FROM jobs WHERE id = :id AND state = 'receiving' RETURNING id"), {"id": job_id}
    ).first()
    if gone is not None:
        connection.execute(text("DELETE FROM items WHERE job_id = :id"), {"id": job_id})
    return gone is not None


def discard_abandoned(connection: Connection, older_than: timedelta) -> list[UUID]:
    """Remove jobs whose client sent nothing for so long."""
    rows = connection.execute(
        text("""
            SELECT id FROM jobs WHERE state = 'receiving' AND received_at < now() - :age
            FOR UPDATE SKIP LOCKED
        """),
        {"age": older_than},
    ).scalars()
    return [job_id for job_id in rows.all() if discard(connection, job_id)]


# Lookups, not joins, for the reason given in `storage.inputs`; in the order of ids, so that neighbours are found on one
# page.
_DISTINCT_INPUTS = text("""
    CREATE TEMPORARY TABLE batchmill_distinct ON COMMIT DROP AS
    SELECT line.input_id AS id, input.size, result.truncated
    FROM (SELECT DISTINCT input_id FROM items WHERE job_id = :job_id ORDER BY input_id) AS line
    LEFT JOIN LATERAL (SELECT truncated FROM results
                       WHERE results.input_id = line.input_id AND target_id = :target_id LIMIT 1) AS result ON true
    LEFT JOIN LATERAL (SELECT size FROM inputs
                       WHERE result.truncated IS NULL AND id = line.input_id LIMIT 1) AS input ON true
""")

# A shard ends where its estimated tokens or its inputs reach their limit. Which shard is claimed first differs from
# job to job: longest first for the first live job of a target, shortest first for the second, any order for more,
# so that equal jobs on two workers meet in the middle instead of walking in step.
_CUT_SHARDS = text("""
    WITH waiting AS (
        SELECT id, size / 4 + 2 AS tokens, row_number() OVER longest AS place,
               sum(greatest(size / 4 + 2, :floor)) OVER longest - greatest(size / 4 + 2, :floor) AS before
        FROM batchmill_distinct WHERE truncated IS NULL
        WINDOW longest AS (ORDER BY size DESC, id ROWS UNBOUNDED PRECEDING)
    ), cut AS (
        SELECT floor(before / :shard_tokens) AS number, array_agg(id ORDER BY place) AS input_ids,
               sum(tokens) AS tokens
        FROM waiting GROUP BY 1
    )
    INSERT INTO shards (job_id, ordinal, state, input_ids, estimated_tokens)
    SELECT :job_id,
           row_number() OVER (ORDER BY CASE :siblings WHEN 0 THEN number WHEN 1 THEN -number ELSE random() END),
           'queued', input_ids, tokens
    FROM cut
""")

_SEAL = text("""
    UPDATE jobs SET
        state = CASE WHEN :open_shards = 0 THEN 'succeeded' ELSE 'queued' END,
        distinct_inputs = :distinct, cached = :cached, truncated = :truncated, open_shards = :open_shards,
        service = coalesce(
            (SELECT min(service) FROM jobs AS other
             WHERE other.state IN ('queued', 'running') AND other.pool = jobs.pool
               AND other.priority = jobs.priority), 0),
        queued_at = now(), finished_at = CASE WHEN :open_shards = 0 THEN now() END
    WHERE id = :job_id AND state = 'receiving'
""")


def seal(connection: Connection, job_id: UUID, target_id: int, *, shard_tokens: int, shard_inputs: int) -> int:
    """Receiving -> queued, or succeeded when every input has a result already.

    Distinct inputs without a result are sorted by length and cut into shards.

    Args:
        connection: In a transaction.
        job_id: A job that is being received.
        target_id: What it computes.
        shard_tokens: Estimated tokens (four bytes each) after which a shard ends.
        shard_inputs: Inputs after which a shard ends.

    Returns:
        The number of shards.

    Raises:
        WrongState: The job is not being received.
    """
    # Locked before its shards are made: it may be taken for abandoned at this very moment.
    receiving = text("SELECT id FROM jobs WHERE id = :id AND state = 'receiving' FOR NO KEY UPDATE")
    if connection.execute(receiving, {"id": job_id}).first() is None:
        raise WrongState(f"job {job_id} was removed: nothing of it arrived for too long; submit again")
    connection.execute(_DISTINCT_INPUTS, {"job_id": job_id, "target_id": target_id})
    distinct, cached, truncated, tokens = connection.execute(
        text("""
            SELECT count(*), count(truncated), count(*) FILTER (WHERE truncated),
                   coalesce(sum(size / 4 + 2) FILTER (WHERE truncated IS NULL), 0)::bigint
            FROM batchmill_distinct
        """)
    ).one()
    shard_tokens = min(shard_tokens, max(tokens // FEWEST_SHARDS, SMALLEST_SHARD))
    siblings = connection.execute(
        text("SELECT count(*) FROM jobs WHERE target_id = :target_id AND state IN ('queued', 'running')"),
        {"target_id": target_id},
    ).scalar_one()
    shards = connection.execute(
        _CUT_SHARDS,
        {
            "job_id": job_id,
            "shard_tokens": shard_tokens,
            # Rounded up to a fraction that floats add up exactly, or now and then a shard would take one too many.
            "floor": -(-shard_tokens * 1024 // shard_inputs) / 1024,
            "siblings": siblings,
        },
    ).rowcount
    connection.execute(
        _SEAL,
        {
            "job_id": job_id,
            "distinct": distinct,
            "cached": cached,
            "truncated": truncated,
            "open_shards": shards,
        },
    )
    return int(shards)


def lock(connection: Connection, job_id: UUID) -> JobState:
    """Hold the job's row until the transaction ends; whoever touches a job and its shards does this first.

    Returns:
        Its state, which no one else changes now.
    """
    statement = text("SELECT state FROM jobs WHERE id = :id FOR NO KEY UPDATE")
    return JobState(connection.execute(statement, {"id": job_id}).scalar_one())


def fail(connection: Connection, job_id: UUID, code: str, message: str) -> bool:
    """queued, running, paused -> failed: the job as a whole cannot run; whether this call did it."""
    lock(connection, job_id)
    failed = connection.execute(
        text("""
            UPDATE jobs SET state = 'failed', error_code = :code, error_message = :message, finished_at = now(),
                            open_shards = 0
            WHERE id = :id AND state IN ('queued', 'running', 'paused') RETURNING id
        """),
        {"id": job_id, "code": code, "message": message},
    ).first()
    if failed is not None:
        connection.execute(
            text("""
                UPDATE shards SET state = 'cancelled', token = NULL, lease_expires_at = NULL, finished_at = now()
                WHERE id IN (SELECT id FROM shards WHERE job_id = :id AND state IN ('queued', 'leased')
                             ORDER BY id FOR NO KEY UPDATE)
            """),
            {"id": job_id},
        )
    return failed is not None


def target_id(connection: Connection, job_id: UUID) -> int:
    """The target that the job computes."""
    statement = text("SELECT target_id FROM jobs WHERE id = :id")
    return int(connection.execute(statement, {"id": job_id}).scalar_one())
