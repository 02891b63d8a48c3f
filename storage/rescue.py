"""Rescue: shards whose worker died go back to the queue, and the input that kills workers is found.

A lease that expired, or whose process is known to be dead, is a death. The first one proves nothing, since the process
held other shards: each of them runs alone in its process next. A death while alone is the shard's own: it is split, and
its parts run alone, until the input that kills stands by itself and fails as `worker_lost`. What was stored by then
counts; neighbours, and strangers in the same process, just run again. The steps of a compression build on each other:
it is not split, and fails as a whole.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT

from contracts.errors import ItemFailed, ModelLoadFailed
from contracts.itemcodes import ItemCode
from contracts.names import COMPRESSION_POOL
from contracts.states import ShardState
from storage import control, counting, inputs, jobs, results
from storage.counting import ShardOutcome
from storage.database import Database

PARTS = 16
"""A shard that killed its worker is split into so many: three deaths more find one input among 4,096."""
LIVES = 3
"""Deaths alone after which an input, or a model that is being loaded, is held to be the cause and not the victim."""
PAUSE = "power(2, least(attempt - 1, 3)) * interval '1 second'"
"""How long a shard rests after a death: 1 s to 8 s, so that nothing storms."""

_DEAD = "state = 'leased' AND (lease_expires_at < now() OR worker = :worker)"

# One that is renewed or closed at this moment is left alone.
_REQUEUE = text(f"""
    UPDATE shards SET state = 'queued', token = NULL, lease_expires_at = NULL, alone = true,
                      not_before = now() + {PAUSE}
    WHERE id IN (SELECT id FROM shards WHERE {_DEAD} AND NOT alone FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING id
""")
_DIED_ALONE = text(f"SELECT id, job_id FROM shards WHERE {_DEAD} AND alone ORDER BY id")
_BURY = text(f"""
    UPDATE shards SET state = 'queued', token = NULL, lease_expires_at = NULL, not_before = now() + {PAUSE},
                      deaths = deaths + (NOT loading)::int, load_deaths = load_deaths + loading::int
    WHERE id = :id AND alone AND {_DEAD}
    RETURNING id, job_id, ordinal, deaths, load_deaths, loading, input_ids,
              (SELECT pool FROM jobs WHERE jobs.id = shards.job_id) AS pool
""")
# Whoever computed anything by the model lately has loaded it: then the deaths had another cause.
_LOADS = text("""
    SELECT EXISTS (
        SELECT FROM jobs JOIN targets ON targets.id = jobs.target_id JOIN shards ON shards.job_id = jobs.id
        WHERE targets.model_id = (SELECT model_id FROM targets WHERE id = :target_id)
          AND shards.state = 'done' AND shards.finished_at > now() - interval '1 hour')
""")
_CLOSE = text("""
    UPDATE shards SET state = :state, finished_at = now(), not_before = NULL WHERE id = :id AND state = 'queued'
""")
_OPEN_PART = text("""
    INSERT INTO shards (job_id, parent_id, ordinal, state, alone, not_before, input_ids, estimated_tokens)
    SELECT :job_id, :parent_id, :ordinal, 'queued', true, now(), :input_ids, sum(size / 4 + 2)
    FROM inputs WHERE id = ANY(:input_ids)
""").bindparams(bindparam("input_ids", type_=ARRAY(BIGINT)))


def rescue(database: Database, worker: str | None = None) -> list[UUID]:
    """Deal with every lease that expired, and those of a worker that is known to be dead.

    Returns:
        The shards that are not leased any more.

    Raises:
        DatabaseUnavailable: Postgres does not answer; what was not dealt with is left to the next call.
    """
    with database.transaction() as connection:
        rescued = list(connection.execute(_REQUEUE, {"worker": worker}).scalars())
        died_alone = connection.execute(_DIED_ALONE, {"worker": worker}).all()
    for shard_id, job_id in died_alone:
        with database.transaction() as connection:
            jobs.lock(connection, job_id)
            shard = connection.execute(_BURY, {"id": shard_id, "worker": worker}).first()
            if shard is not None:
                _judge(connection, shard)
                rescued.append(shard_id)
    return rescued


def _judge(connection: Connection, shard: Row[Any]) -> None:
    """Decide what becomes of a shard whose worker died while it ran alone; it is queued again by now."""
    target_id = jobs.target_id(connection, shard.job_id)
    if shard.loading:
        if shard.load_deaths >= LIVES and not connection.execute(_LOADS, {"target_id": target_id}).scalar_one():
            reason = f"{shard.load_deaths} worker processes died while they loaded the model: is there memory for it?"
            control.fail(connection, shard.job_id, ModelLoadFailed.code, reason)
        return
    known = results.known(connection, target_id, shard.input_ids)
    left = [input_id for input_id in shard.input_ids if input_id not in known]
    if shard.pool == COMPRESSION_POOL:
        if shard.deaths >= LIVES:
            step = len(results.known(connection, target_id, inputs.ids_of_job(connection, shard.job_id))) + 1
            reason = f"each of the last {shard.deaths} workers died, or was cut off, at step {step} of the recipe"
            control.fail(connection, shard.job_id, ItemCode.WORKER_LOST, reason)
        return
    if len(left) > 1:
        _split(connection, shard, target_id, list(known), left)
    elif left and shard.deaths >= LIVES:
        reason = f"each of the {shard.deaths} workers that computed this input alone died or was cut off"
        connection.execute(_CLOSE, {"id": shard.id, "state": str(ShardState.DONE)})
        _count(
            connection,
            shard,
            target_id,
            shard.input_ids,
            {left[0]: ItemFailed(ItemCode.WORKER_LOST, reason)},
            opened=-1,
        )


def _split(connection: Connection, shard: Row[Any], target_id: int, known: Sequence[int], left: Sequence[int]) -> None:
    size = -(-len(left) // PARTS)
    parts = [left[start : start + size] for start in range(0, len(left), size)]
    connection.execute(_CLOSE, {"id": shard.id, "state": str(ShardState.SPLIT)})
    connection.execute(
        _OPEN_PART,
        [
            {"job_id": shard.job_id, "parent_id": shard.id, "ordinal": shard.ordinal, "input_ids": list(part)}
            for part in parts
        ],
    )
    _count(connection, shard, target_id, known, {}, opened=len(parts) - 1)


def _count(
    connection: Connection,
    shard: Row[Any],
    target_id: int,
    input_ids: Sequence[int],
    errors: dict[int, ItemFailed],
    *,
    opened: int,
) -> None:
    counting.count(
        connection,
        job_id=shard.job_id,
        shard_id=shard.id,
        target_id=target_id,
        input_ids=input_ids,
        outcome=ShardOutcome(errors),
        opened=opened,
    )
