"""What people look at: the pools, their waiting work, the jobs that are open, and what was measured of models."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select, text

from contracts.jobs import JobInfo
from contracts.names import COMPRESSION_POOL
from contracts.states import JobState
from storage import claims, jobs, workers
from storage.jobs import JobFilter
from storage.tables import batch_budgets, models
from storage.workers import SeenWorker

HEARD_OF = timedelta(minutes=1)
"""A worker that said nothing for so long is not shown."""
OPEN_STATES = (JobState.RUNNING, JobState.QUEUED, JobState.PAUSED, JobState.RECEIVING)


@dataclass(frozen=True)
class PoolLoad:
    """The work of a pool."""

    pool: str
    claimable: int
    """Shards that could be claimed now, counted up to a limit."""
    oldest: datetime | None
    """Since when the job waits that was not served for longest: when it was served last, or else queued."""
    jobs: dict[JobState, int]
    """How many are in each state that is not final."""


@dataclass(frozen=True)
class Overview:
    """The system at one moment."""

    at: datetime
    """The database's time."""
    pools: list[PoolLoad]
    workers: list[SeenWorker]
    """Those heard of within a minute."""
    jobs: list[JobInfo]
    """Those that are open, the newest first within a state: running, queued, paused, receiving."""
    models: int
    """How many are registered."""


@dataclass(frozen=True)
class Measurement:
    """What a kind of device measured of a model."""

    model_id: int
    device: str
    budget_tokens: int
    """Of a micro-batch, with padding."""
    tokens_per_second: float
    memory_bytes: int | None
    """That the loaded weights take."""
    load_seconds: float | None
    measured_at: datetime
    quantization: str
    """How the weights are held, where the model leaves that to the device."""
    dtype: str
    """The arithmetic."""
    lanes: int
    """Passes beside one another."""
    threads: int
    """Of a pass."""
    rates: list[dict[str, Any]]
    """All that was tried, as `storage.plans.Rate` has it."""


def look(connection: Connection, *, most_jobs: int, most_shards: int) -> Overview:
    """The system now.

    Args:
        connection: In a transaction.
        most_jobs: How many open jobs to give at most.
        most_shards: How far to count the claimable shards of a pool.
    """
    found: list[JobInfo] = []
    for state in OPEN_STATES:
        found += jobs.list_newest(connection, JobFilter(states=[state]), limit=most_jobs - len(found))
    at, models = connection.execute(_NOW).one()
    return Overview(
        at=at,
        pools=_pools(connection, most_shards),
        workers=workers.seen(connection, HEARD_OF),
        jobs=found,
        models=models,
    )


def compressors(connection: Connection) -> list[SeenWorker]:
    """The workers that compress, as far as they were heard of within a minute."""
    return [worker for worker in workers.seen(connection, HEARD_OF) if worker.pool == COMPRESSION_POOL]


_NOW = text("SELECT now(), (SELECT count(*) FROM models WHERE removed_at IS NULL)")
# Each part has a partial index of its own: what has ended, which is nearly everything, is not read.
_OPEN_JOBS = text("""
    SELECT pool, state, count(*) AS jobs FROM jobs WHERE state IN ('queued', 'running', 'paused') GROUP BY pool, state
    UNION ALL
    SELECT pool, state, count(*) FROM jobs WHERE state = 'receiving' GROUP BY pool, state
""")
_OLDEST = text("""
    SELECT pool, min(coalesce(served_at, queued_at)) AS since FROM jobs
    WHERE state IN ('queued', 'running') AND (expires_at IS NULL OR expires_at > now())
      AND EXISTS (SELECT FROM shards WHERE shards.job_id = jobs.id AND shards.state = 'queued')
    GROUP BY pool
""")
_POOLS = text("SELECT DISTINCT pool FROM models WHERE removed_at IS NULL")


def _pools(connection: Connection, most_shards: int) -> list[PoolLoad]:
    """Pools that have a model or an open job, by name."""
    claimable = claims.claimable(connection, most_shards)
    oldest = {row.pool: row.since for row in connection.execute(_OLDEST)}
    counts: dict[str, dict[JobState, int]] = {pool: {} for pool in connection.execute(_POOLS).scalars()}
    for row in connection.execute(_OPEN_JOBS):
        counts.setdefault(row.pool, {})[JobState(row.state)] = row.jobs
    return [PoolLoad(pool, claimable.get(pool, 0), oldest.get(pool), counts[pool]) for pool in sorted(counts)]


def measurements(connection: Connection, model_ids: Sequence[int]) -> list[Measurement]:
    """What was measured of these models, by model and device."""
    columns = [batch_budgets.c[name] for name in Measurement.__dataclass_fields__]
    query = select(*columns).where(batch_budgets.c.model_id.in_(model_ids))
    rows = connection.execute(query.order_by(batch_budgets.c.model_id, batch_budgets.c.device))
    return [Measurement(**row._mapping) for row in rows]


def measured_on(connection: Connection, device: str, most: int) -> list[tuple[str, Measurement]]:
    """What was measured on a kind of device, the latest first; each with the model's reference and quantization."""
    columns = [batch_budgets.c[name] for name in Measurement.__dataclass_fields__]
    named = func.concat(models.c.name, "@", models.c.version, " (", models.c.quantization, ")").label("named")
    query = select(named, *columns).join_from(batch_budgets, models).where(batch_budgets.c.device == device)
    query = query.where(models.c.removed_at.is_(None)).order_by(batch_budgets.c.measured_at.desc()).limit(most)
    return [(row[0], Measurement(*row[1:])) for row in connection.execute(query)]
