"""Claiming: the most urgent shard of a pool becomes a lease."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT

from contracts.states import CLAIMABLE_JOB_STATES, Priority
from storage import jobs
from storage.shards import Lease

LOADS = 10
"""A model is worth loading in another's place when its job has waited for so many times what loading takes."""
PATIENCE = timedelta(seconds=10), timedelta(minutes=10)
"""How long that is at least and at most: models that take turns spend most of their time at work."""
WINDOW = 500
"""Jobs that are looked at first: what a claim costs does not grow with the number of jobs that wait."""
ALONE_PATIENCE = timedelta(seconds=2)
"""How long a shard that must run alone waits for a process to become idle before processes make themselves idle."""


def worth_loading(seconds: float) -> float:
    """Seconds of work that a model should have before another takes its place, when loading it took so many."""
    shortest, longest = (patience.total_seconds() for patience in PATIENCE)
    return min(max(LOADS * seconds, shortest), longest)


@dataclass(frozen=True)
class Capacity:
    """What a process could serve now."""

    loaded: Sequence[int] = ()
    """Ids of the models in memory."""
    free_bytes: int = 2**62
    """Memory that another model could take, once models that nobody uses have left."""
    vacant_bytes: int = 2**62
    """Memory that another model could take with none leaving."""
    total_bytes: int = 2**62
    """Memory for models; what needs more takes all of it and stands partly elsewhere, or its job says why not."""
    idle: bool = True
    """Whether it holds no shard: only then may it take one that must run alone."""
    settled: bool = True
    """Whether the model that was loaded last has worked for long enough for another to take its place."""


_OPEN = "jobs.state IN ('queued', 'running') AND (jobs.expires_at IS NULL OR jobs.expires_at > now())"
# A shard is left alone while an equal one of another job is being computed: afterwards it is all in the cache. Equal
# jobs are cut alike, so that the first input tells.
_CLAIMABLE = """
    shards.state = 'queued' AND (shards.not_before IS NULL OR shards.not_before <= now())
    AND NOT EXISTS (
        SELECT FROM shards AS twin JOIN jobs AS other ON other.id = twin.job_id
        WHERE twin.state = 'leased' AND twin.job_id <> shards.job_id AND other.target_id = jobs.target_id
          AND twin.input_ids[1] = shards.input_ids[1])
"""
_ALONE = f"EXISTS (SELECT FROM shards WHERE shards.job_id = jobs.id AND shards.alone AND {_CLAIMABLE})"

# An interactive job waits for its model a tenth as long as others do, and whatever was loaded last. Where another
# worker computes by the model, nobody starves: it may be loading it just now.
_WAITED = """
    (:settled OR jobs.priority = 0) AND coalesce(jobs.served_at, jobs.queued_at) < now() - least(greatest(:shortest,
        :loads * (SELECT coalesce(max(load_seconds), 0) FROM batch_budgets WHERE model_id = models.id)
        * interval '1 second'), :longest) * CASE jobs.priority WHEN 0 THEN 0.1 ELSE 1 END
    AND NOT EXISTS (
        SELECT FROM jobs AS served JOIN targets AS theirs ON theirs.id = served.target_id
            JOIN shards ON shards.job_id = served.id
        WHERE served.state = 'running' AND theirs.model_id = models.id
          AND shards.state = 'leased' AND shards.lease_expires_at > now())
"""

_PICK_JOB = text(f"""
    SELECT * FROM (
        SELECT jobs.id, jobs.priority, jobs.target_id, jobs.service, jobs.queued_at, jobs.traceparent,
               model_id, memory_bytes, here, here OR least(memory_bytes, :total) <= :free AS fits,
               NOT here AND {_WAITED} AS starves
        FROM (SELECT * FROM jobs WHERE pool = :pool AND {_OPEN} AND priority <= :lowest
              ORDER BY priority, service LIMIT :most) AS jobs
        JOIN targets ON targets.id = jobs.target_id JOIN models ON models.id = targets.model_id,
        LATERAL (SELECT models.id = ANY(:loaded) AS here) AS place
        WHERE EXISTS (SELECT FROM shards WHERE shards.job_id = jobs.id AND (:idle OR NOT shards.alone) AND {_CLAIMABLE})
    ) AS jobs
    WHERE fits OR starves
    ORDER BY priority,
             NOT (:idle AND {_ALONE}),
             NOT starves,
             NOT (here OR least(memory_bytes, :total) <= :vacant),
             service, queued_at, id
    LIMIT 1
""").bindparams(bindparam("loaded", type_=ARRAY(BIGINT)))

_TAKE_SHARD = text(f"""
    UPDATE shards SET state = 'leased', token = gen_random_uuid(), attempt = attempt + 1, worker = :worker,
                      lease_expires_at = clock_timestamp() + :lease, not_before = NULL, loading = :loading
    WHERE id = (SELECT shards.id FROM shards JOIN jobs ON jobs.id = shards.job_id
                WHERE shards.job_id = :job_id AND (:idle OR NOT shards.alone) AND {_CLAIMABLE}
                ORDER BY shards.alone DESC, shards.ordinal LIMIT 1 FOR UPDATE OF shards SKIP LOCKED)
    RETURNING id, token, attempt, alone, loading, input_ids, estimated_tokens
""")

# Someone may stand still with the lock of the very job that is the most urgent.
_PATIENCE = text("SET LOCAL lock_timeout = '2s'")
_CHARGE_JOB = text("""
    UPDATE jobs SET state = 'running', started_at = coalesce(started_at, now()), served_at = now(),
                    service = service + :tokens
    WHERE id = :job_id AND state IN ('queued', 'running')
""")

_ALONE_WAITS = text(f"""
    SELECT min(jobs.priority) FROM jobs JOIN shards ON shards.job_id = jobs.id
    WHERE jobs.pool = :pool AND {_OPEN} AND shards.alone AND shards.not_before < now() - :patience AND {_CLAIMABLE}
""")


_COUNT_WAITING = text(f"""
    SELECT (SELECT count(*)
            FROM (SELECT FROM jobs JOIN shards ON shards.job_id = jobs.id
                  WHERE jobs.pool = :pool AND {_OPEN} AND {_CLAIMABLE} LIMIT :most) AS found),
           coalesce((SELECT extract(epoch FROM now() - coalesce(served_at, queued_at))::float FROM jobs
                     WHERE pool = :pool AND {_OPEN}
                       AND EXISTS (SELECT FROM shards WHERE shards.job_id = jobs.id AND {_CLAIMABLE})
                     ORDER BY coalesce(served_at, queued_at) LIMIT 1), 0)
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

    Urgent is: the priority class; within it shards that must run alone, where the process is idle; then jobs that
    have waited for their model for long; then those whose model is in memory, or finds room there; then the job that
    was served least; then age. While a shard that must run alone has waited for long, a process that is not idle takes
    only what is more urgent, until it is idle. When the most urgent job's model finds no room because others are in
    use, nothing is claimed either: they come out of use one by one, and the model gets its turn.

    Args:
        connection: In a transaction of its own.
        pool: Whose shards.
        worker: Who claims: `host:pid`, by which its leases are given back when it is known to be dead.
        lease: How long the shard is held without a heartbeat.
        lowest: The least urgent class to take.
        capacity: What the process could serve.

    Raises:
        DatabaseUnavailable: By the transaction: the job to serve is locked for longer than a moment.
    """
    wanted = _wanted(pool, lowest, capacity or Capacity())
    connection.execute(_PATIENCE)
    if not wanted["idle"]:
        waits = connection.execute(_ALONE_WAITS, {"pool": pool, "patience": ALONE_PATIENCE}).scalar_one()
        if waits is not None:
            wanted["lowest"] = min(wanted["lowest"], waits - 1)
    while (job := _pick(connection, wanted)) is not None and job.fits:
        # Someone may take the job's last shard, or end the job, before its lock is ours: then the next job is
        # looked for, without that lock, as whoever holds several can wait for one who waits for him.
        with connection.begin_nested() as attempt:
            taken = _take(connection, job, wanted, worker, lease)
            if taken is not None:
                return taken
            attempt.rollback()
    return None


def could_claim(connection: Connection, *, pool: str, capacity: Capacity) -> bool:
    """Whether `claim` would find a shard for such a process now."""
    job = _pick(connection, _wanted(pool, Priority.BULK, capacity))
    return job is not None and bool(job.fits)


def _pick(connection: Connection, wanted: Mapping[str, Any]) -> Row[Any] | None:
    """The job to serve: among those served least, or where all of their shards are taken, among all."""
    for most in (WINDOW, None):
        job = connection.execute(_PICK_JOB, {**wanted, "most": most}).first()
        if job is not None:
            return job
    return None


def _wanted(pool: str, lowest: Priority, capacity: Capacity) -> dict[str, Any]:
    return {
        "pool": pool,
        "lowest": lowest.rank,
        "loaded": list(capacity.loaded),
        "free": capacity.free_bytes,
        "total": capacity.total_bytes,
        "vacant": capacity.vacant_bytes,
        "idle": capacity.idle,
        "settled": capacity.settled,
        "loads": LOADS,
        "shortest": PATIENCE[0],
        "longest": PATIENCE[1],
    }


def _take(
    connection: Connection, job: Row[Any], wanted: Mapping[str, Any], worker: str, lease: timedelta
) -> Lease | None:
    if jobs.lock(connection, job.id) not in CLAIMABLE_JOB_STATES:
        return None
    how = {"worker": worker, "lease": lease, "idle": wanted["idle"], "loading": job.model_id not in wanted["loaded"]}
    shard = connection.execute(_TAKE_SHARD, {"job_id": job.id, **how}).first()
    if shard is None:
        return None
    connection.execute(_CHARGE_JOB, {"job_id": job.id, "tokens": shard.estimated_tokens})
    return Lease(
        shard_id=shard.id,
        job_id=job.id,
        target_id=job.target_id,
        token=shard.token,
        attempt=shard.attempt,
        alone=shard.alone,
        loading=shard.loading,
        priority=Priority.of_rank(job.priority),
        input_ids=shard.input_ids,
        traceparent=job.traceparent,
    )


def claimable(connection: Connection, most: int) -> dict[str, int]:
    """By pool: how many shards could be claimed now, counted up to `most`."""
    rows = connection.execute(
        text(f"""
            SELECT pools.pool, count(*)
            FROM (SELECT DISTINCT pool FROM jobs WHERE state IN ('queued', 'running')) AS pools,
                LATERAL (SELECT FROM shards JOIN jobs ON jobs.id = shards.job_id
                         WHERE jobs.pool = pools.pool AND {_OPEN} AND {_CLAIMABLE}
                         LIMIT :most) AS found
            GROUP BY pools.pool
        """),
        {"most": most},
    )
    return {row[0]: row[1] for row in rows}


@dataclass(frozen=True)
class Waiting:
    """What waits in a pool."""

    shards: int
    """That could be claimed now."""
    oldest_seconds: float
    """Since the job was served last, or else queued, that was not served for longest; 0 when none waits."""


def waiting(connection: Connection, pool: str, most: int) -> Waiting:
    """What could be claimed now in a pool, counted up to `most` shards."""
    found = connection.execute(_COUNT_WAITING, {"pool": pool, "most": most}).one()
    return Waiting(*found)


def any_interactive(connection: Connection, pool: str) -> bool:
    """Whether the pool has interactive work, claimable or not; less to ask than a claim."""
    statement = text(
        "SELECT EXISTS (SELECT FROM jobs WHERE pool = :pool AND state IN ('queued', 'running') AND priority = 0)"
    )
    return bool(connection.execute(statement, {"pool": pool}).scalar_one())


def any_claimable(connection: Connection, pool: str) -> bool:
    """Whether at least one shard of the pool could be claimed now."""
    return bool(
        connection.execute(
            text(f"""
                SELECT EXISTS (
                    SELECT FROM jobs JOIN shards ON shards.job_id = jobs.id
                    WHERE jobs.pool = :pool AND {_OPEN} AND {_CLAIMABLE})
            """),
            {"pool": pool},
        ).scalar_one()
    )
