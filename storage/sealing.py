"""Sealing: a job that was received whole is cut into shards and becomes visible to workers."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from contracts.errors import WrongState
from contracts.events import Event
from storage import events

FEWEST_SHARDS = 32
SMALLEST_SHARD = 2048
"""A job is cut into so many shards at least, so that several workers can share it, unless they would hold fewer
estimated tokens than this."""

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
        SELECT id, tokens, row_number() OVER longest AS place,
               sum(greatest(tokens, :floor)) OVER longest - greatest(tokens, :floor) AS before
        FROM (SELECT id, size, size / 4 + 2 + :extra AS tokens FROM batchmill_distinct WHERE truncated IS NULL) AS line
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
        queued_at = now(), expires_at = now() + CAST(:expires_in AS interval),
        finished_at = CASE WHEN :open_shards = 0 THEN now() END
    WHERE id = :job_id AND state = 'receiving'
""")


def seal(
    connection: Connection,
    job_id: UUID,
    target_id: int,
    *,
    shard_tokens: int | None,
    shard_inputs: int,
    extra_tokens: int = 0,
    expires_in: timedelta | None = None,
) -> int:
    """Receiving -> queued, or succeeded when every input has a result already.

    Distinct inputs without a result are sorted by length and cut into shards.

    Args:
        connection: In a transaction.
        job_id: A job that is being received.
        target_id: What it computes.
        shard_tokens: Estimated tokens (four bytes each) after which a shard ends; None for one shard of all inputs.
        shard_inputs: Inputs after which a shard ends.
        extra_tokens: What each input costs beyond its own tokens.
        expires_in: How long from now the job may take; as long as it takes when not given.

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
                   coalesce(sum(size / 4 + 2 + :extra) FILTER (WHERE truncated IS NULL), 0)::bigint
            FROM batchmill_distinct
        """),
        {"extra": extra_tokens},
    ).one()
    if shard_tokens is None:
        shard_tokens, shard_inputs = tokens + 1, 2**40
    else:
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
            "extra": extra_tokens,
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
            "expires_in": expires_in,
        },
    )
    if cached:
        events.announce_progress(connection, job_id)
    if shards == 0:
        events.announce(connection, job_id, Event.COMPLETED)
    return int(shards)
