"""Shards and their leases: keep, close, give back."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from contracts.errors import LeaseLost
from contracts.states import Priority
from storage import counting, jobs
from storage.counting import ShardOutcome


@dataclass(frozen=True)
class Lease:
    """A claimed shard."""

    shard_id: UUID
    job_id: UUID
    target_id: int
    token: UUID
    attempt: int
    alone: bool
    """Whether the process must hold nothing beside it: a worker died of it, or next to it."""
    loading: bool
    """Whether the model was not in memory when it was claimed."""
    priority: Priority
    input_ids: list[int]
    """Longest input first."""
    traceparent: str | None = None
    """Of the job's submission, where that was traced."""


def valid(connection: Connection, tokens: Sequence[UUID]) -> set[UUID]:
    """Those of the tokens that still hold a shard."""
    statement = text("SELECT token FROM shards WHERE token = ANY(:tokens) AND state = 'leased'")
    return set(connection.execute(statement, {"tokens": list(tokens)}).scalars())


def renew(connection: Connection, tokens: Sequence[UUID], lease: timedelta) -> set[UUID]:
    """Heartbeat: extend leases; the tokens that are still valid."""
    rows = connection.execute(
        text("""
            UPDATE shards SET lease_expires_at = clock_timestamp() + :lease
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
    return counting.count(
        connection,
        job_id=lease.job_id,
        shard_id=lease.shard_id,
        target_id=lease.target_id,
        input_ids=lease.input_ids,
        outcome=outcome,
    )


def held(connection: Connection, lease: Lease) -> bool:
    """Whether the lease is still valid; the job is locked, so that it stays so until the transaction ends."""
    jobs.lock(connection, lease.job_id)
    statement = text("SELECT EXISTS (SELECT FROM shards WHERE id = :id AND state = 'leased' AND token = :token)")
    return bool(connection.execute(statement, {"id": lease.shard_id, "token": lease.token}).scalar_one())


def loaded(connection: Connection, lease: Lease) -> None:
    """Note that the lease's model is in memory: a death from now on is not laid at its door."""
    connection.execute(text("UPDATE shards SET loading = false WHERE token = :token"), {"token": lease.token})


def revive(connection: Connection, lease: Lease) -> None:
    """Note that a part of the lease's work is safe: deaths before it are not counted any more."""
    connection.execute(text("UPDATE shards SET deaths = 0 WHERE token = :token"), {"token": lease.token})


def release(connection: Connection, tokens: Sequence[UUID], rest: timedelta | None = None) -> int:
    """Leased -> queued: give shards back; how many were held.

    Args:
        connection: In a transaction.
        tokens: Of the leases.
        rest: Not claimable for so long, with the attempt counted; otherwise at once, and as if never claimed.
    """
    return connection.execute(
        text("""
            UPDATE shards SET state = 'queued', token = NULL, lease_expires_at = NULL,
                              not_before = now() + coalesce(CAST(:rest AS interval),
                                                            CASE WHEN alone THEN interval '0' END),
                              attempt = CASE WHEN CAST(:rest AS interval) IS NULL THEN attempt - 1 ELSE attempt END
            WHERE id IN (SELECT id FROM shards WHERE token = ANY(:tokens) AND state = 'leased'
                         ORDER BY id FOR NO KEY UPDATE)
        """),
        {"tokens": list(tokens), "rest": rest},
    ).rowcount
