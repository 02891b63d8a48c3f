"""Shards and their leases: claim, keep, close, release, rescue."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT

from contracts.errors import ItemFailed, LeaseLost
from contracts.events import Event
from contracts.states import CLAIMABLE_JOB_STATES, Priority
from storage import events, jobs

STARVING = timedelta(seconds=30)
"""A job not served for so long goes before jobs whose model happens to be in memory."""


@dataclass(frozen=True)
class Lease:
    """A claimed shard."""

    shard_id: UUID
    job_id: UUID
    target_id: int
    token: UUID
    attempt: int
    priority: Priority
    input_ids: list[int]
    """Longest input first."""


@dataclass(frozen=True)
class Capacity:
    """Which models a process could serve now."""

    loaded: Sequence[int] = ()
    """Ids of the models in memory."""
    free_bytes: int = 2**62
    """Memory that another model could take."""
    total_bytes: int = 2**62
    """Memory for models; what needs more is claimed all the same, so that its job fails with the reason."""


@dataclass(frozen=True)
class ShardOutcome:
    """What is left to say when every input of a shard has been dealt with."""

    errors: dict[int, ItemFailed]
    """By input id."""
    micro_batches: float = 0.0
    real_tokens: int = 0
    padded_tokens: int = 0
    budget_tokens: int = 0


# A shard is left alone while an equal one of another job is being computed: afterwards it is all in the cache. Equal
# jobs are cut alike, so that the first input tells.
_CLAIMABLE = """
    shards.state = 'queued' AND (shards.not_before IS NULL OR shards.not_before <= now())
    AND NOT EXISTS (
        SELECT FROM shards AS twin JOIN jobs AS other ON other.id = twin.job_id
        WHERE twin.state = 'leased' AND twin.job_id <> shards.job_id AND other.target_id = jobs.target_id
          AND twin.input_ids[1] = shards.input_ids[1])
"""

_PICK_JOB = text(f"""
    SELECT jobs.id, jobs.priority, jobs.target_id FROM jobs
    JOIN targets ON targets.id = jobs.target_id JOIN models ON models.id = targets.model_id
    WHERE jobs.pool = :pool AND jobs.state IN ('queued', 'running') AND jobs.priority <= :lowest
      AND (models.id = ANY(:loaded) OR models.memory_bytes <= :free OR models.memory_bytes > :total)
      AND EXISTS (SELECT FROM shards WHERE shards.job_id = jobs.id AND {_CLAIMABLE})
    ORDER BY jobs.priority,
             NOT (models.id = ANY(:loaded) OR coalesce(jobs.served_at, jobs.queued_at) < now() - :starving),
             jobs.service, jobs.queued_at, jobs.id
    LIMIT 1
""").bindparams(bindparam("loaded", type_=ARRAY(BIGINT)))

_TAKE_SHARD = text(f"""
    UPDATE shards SET state = 'leased', token = gen_random_uuid(), attempt = attempt + 1, worker = :worker,
                      lease_expires_at = now() + :lease, not_before = NULL
    WHERE id = (SELECT shards.id FROM shards JOIN jobs ON jobs.id = shards.job_id
                WHERE shards.job_id = :job_id AND {_CLAIMABLE}
                ORDER BY shards.ordinal LIMIT 1 FOR UPDATE OF shards SKIP LOCKED)
    RETURNING id, token, attempt, input_ids, estimated_tokens
""")

_CHARGE_JOB = text("""
    UPDATE jobs SET state = 'running', started_at = coalesce(started_at, now()), served_at = now(),
                    service = service + :tokens
    WHERE id = :job_id AND state IN ('queued', 'running')
""")


def claim(
    connection: Connection,
    *,
    pool: str,
    worker: str,
    lease: timedelta,
    lowest: Priority = Priority.BULK,
    capacity: Capacity | None = None,
) -> Lease | None:
    """Lease the most urgent shard of a pool; None when there is nothing to claim.

    Urgent is: the priority class; within it jobs whose model is in memory, and those that starve; then the job that
    was served least; then age.

    Args:
        connection: In a transaction of its own.
        pool: Whose shards.
        worker: Who claims, for people to read.
        lease: How long the shard is held without a heartbeat.
        lowest: The least urgent class to take.
        capacity: Which models could be served.
    """
    capacity = capacity or Capacity()
    wanted = {
        "pool": pool,
        "lowest": lowest.rank,
        "loaded": list(capacity.loaded),
        "free": capacity.free_bytes,
        "total": capacity.total_bytes,
        "starving": STARVING,
    }
    while (job := connection.execute(_PICK_JOB, wanted).first()) is not None:
        # Someone may take the job's last shard, or end the job, before its lock is ours: then the next job is
        # looked for, without that lock, as whoever holds several can wait for one who waits for him.
        with connection.begin_nested() as attempt:
            taken = _take(connection, job, worker, lease)
            if taken is not None:
                return taken
            attempt.rollback()
    return None


def _take(connection: Connection, job: Row[Any], worker: str, lease: timedelta) -> Lease | None:
    if jobs.lock(connection, job.id) not in CLAIMABLE_JOB_STATES:
        return None
    shard = connection.execute(_TAKE_SHARD, {"job_id": job.id, "worker": worker, "lease": lease}).first()
    if shard is None:
        return None
    connection.execute(_CHARGE_JOB, {"job_id": job.id, "tokens": shard.estimated_tokens})
    return Lease(
        shard_id=shard.id,
        job_id=job.id,
        target_id=job.target_id,
        token=shard.token,
        attempt=shard.attempt,
        priority=Priority.of_rank(job.priority),
        input_ids=shard.input_ids,
    )


def renew(connection: Connection, tokens: Sequence[UUID], lease: timedelta) -> set[UUID]:
    """Heartbeat: extend leases; the tokens that are still valid."""
    rows = connection.execute(
        text("""
            UPDATE shards SET lease_expires_at = now() + :lease
            WHERE id IN (SELECT id FROM shards WHERE token = ANY(:tokens) AND state = 'leased'
                         ORDER BY id FOR NO KEY UPDATE)
            RETURNING token
        """),
        {"tokens": list(tokens), "lease": lease},
    )
    return set(rows.scalars())


def close(connection: Connection, lease: Lease, outcome: ShardOutcome) -> bool:
    """Leased -> done, with the errors of its items and the job's counters; the last one ends the job.

    Returns:
        Whether the job is terminal now.

    Raises:
        LeaseLost: The token is not valid any more; nothing was changed.
    """
    jobs.lock(connection, lease.job_id)
    closed = connection.execute(
        text("""
            UPDATE shards SET state = 'done', token = NULL, lease_expires_at = NULL, finished_at = now()
            WHERE id = :id AND state = 'leased' AND token = :token RETURNING id
        """),
        {"id": lease.shard_id, "token": lease.token},
    ).first()
    if closed is None:
        raise LeaseLost(f"shard {lease.shard_id} is held by someone else by now")
    if outcome.errors:
        connection.execute(
            text("""
                INSERT INTO item_errors (job_id, input_id, code, message)
                VALUES (:job_id, :input_id, :code, :message) ON CONFLICT DO NOTHING
            """),
            [
                {"job_id": lease.job_id, "input_id": input_id, "code": e.item_code, "message": e.message}
                for input_id, e in sorted(outcome.errors.items())
            ],
        )
    (state,) = connection.execute(
        _COUNT_SHARD,
        {
            "job_id": lease.job_id,
            "shard_id": lease.shard_id,
            "target_id": lease.target_id,
            "input_ids": lease.input_ids,
            "failed": sorted(outcome.errors),
            "failures": len(outcome.errors),
            "micro_batches": outcome.micro_batches,
            "real_tokens": outcome.real_tokens,
            "padded_tokens": outcome.padded_tokens,
            "budget_tokens": outcome.budget_tokens,
        },
    ).one()
    if state != "succeeded":
        return False
    events.announce(connection, lease.job_id, Event.COMPLETED)
    return True


_COUNT_SHARD = text("""
    WITH found AS (
        SELECT count(*) FILTER (WHERE shard_id = :shard_id) AS computed,
               count(*) FILTER (WHERE shard_id <> :shard_id) AS cached,
               count(*) FILTER (WHERE truncated) AS truncated
        FROM results
        WHERE target_id = :target_id AND input_id = ANY(:input_ids) AND NOT input_id = ANY(:failed)
    )
    UPDATE jobs SET
        computed = jobs.computed + found.computed, cached = jobs.cached + found.cached,
        truncated = jobs.truncated + found.truncated, failed = jobs.failed + :failures,
        micro_batches = micro_batches + :micro_batches, real_tokens = real_tokens + :real_tokens,
        padded_tokens = padded_tokens + :padded_tokens, budget_tokens = budget_tokens + :budget_tokens,
        open_shards = open_shards - 1,
        state = CASE WHEN open_shards = 1 AND state IN ('running', 'paused') THEN 'succeeded' ELSE state END,
        finished_at = CASE WHEN open_shards = 1 AND state IN ('running', 'paused') THEN now()
                           ELSE finished_at END
    FROM found WHERE jobs.id = :job_id
    RETURNING jobs.state
""").bindparams(bindparam("input_ids", type_=ARRAY(BIGINT)), bindparam("failed", type_=ARRAY(BIGINT)))


def held(connection: Connection, lease: Lease) -> bool:
    """Whether the lease is still valid; the job is locked, so that it stays so until the transaction ends."""
    jobs.lock(connection, lease.job_id)
    statement = text("SELECT EXISTS (SELECT FROM shards WHERE id = :id AND state = 'leased' AND token = :token)")
    return bool(connection.execute(statement, {"id": lease.shard_id, "token": lease.token}).scalar_one())


def release(connection: Connection, tokens: Sequence[UUID]) -> int:
    """Leased -> queued: give shards back untouched, claimable at once; how many were held."""
    return connection.execute(
        text("""
            UPDATE shards SET state = 'queued', token = NULL, lease_expires_at = NULL, attempt = attempt - 1
            WHERE token = ANY(:tokens) AND state = 'leased'
        """),
        {"tokens": list(tokens)},
    ).rowcount


def rescue(connection: Connection) -> list[UUID]:
    """Leased -> queued for every lease that expired: claimable after a pause that grows with the attempts.

    A shard that is renewed or closed at this moment is left alone.
    """
    rows = connection.execute(
        text("""
            UPDATE shards SET state = 'queued', token = NULL, lease_expires_at = NULL,
                              not_before = now() + least(power(2, least(attempt - 1, 6)), 60) * interval '1 second'
            WHERE id IN (SELECT id FROM shards WHERE state = 'leased' AND lease_expires_at < now()
                         FOR NO KEY UPDATE SKIP LOCKED)
            RETURNING id
        """)
    )
    return list(rows.scalars())


def claimable(connection: Connection, most: int) -> dict[str, int]:
    """By pool: how many shards could be claimed now, counted up to `most`."""
    rows = connection.execute(
        text(f"""
            SELECT pools.pool, count(*)
            FROM (SELECT DISTINCT pool FROM jobs WHERE state IN ('queued', 'running')) AS pools,
                LATERAL (SELECT FROM shards JOIN jobs ON jobs.id = shards.job_id
                         WHERE jobs.pool = pools.pool AND jobs.state IN ('queued', 'running') AND {_CLAIMABLE}
                         LIMIT :most) AS found
            GROUP BY pools.pool
        """),
        {"most": most},
    )
    return {row[0]: row[1] for row in rows}


def any_claimable(connection: Connection, pool: str) -> bool:
    """Whether at least one shard of the pool could be claimed now."""
    return bool(
        connection.execute(
            text(f"""
                SELECT EXISTS (
                    SELECT FROM jobs JOIN shards ON shards.job_id = jobs.id
                    WHERE jobs.pool = :pool AND jobs.state IN ('queued', 'running') AND {_CLAIMABLE})
            """),
            {"pool": pool},
        ).scalar_one()
    )
