"""Inputs made ready for the device: those that nobody computed yet, each failing by itself."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from contracts.errors import ItemFailed, describe
from contracts.itemcodes import ItemCode
from contracts.models import TargetSpec
from storage import inputs, results
from storage.database import Database
from storage.shards import Lease
from worker.batcher import Block
from worker.engines.base import Engine, Prepared
from worker.engines.vectors import refused
from worker.shards import HeldShard

log = logging.getLogger(__name__)


def hold(database: Database, lease: Lease, target: TargetSpec, engine: Engine) -> HeldShard:
    """A leased shard with its rows: fetched, without the inputs that have a result by now, and tokenized.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    with database.transaction() as connection:
        known = results.known(connection, target.id, lease.input_ids)
        missing = [input_id for input_id in lease.input_ids if input_id not in known]
        payloads = inputs.payloads(connection, missing)
    prepared = prepare(engine, payloads, target.params)
    good = [place for place in range(len(missing)) if place not in prepared.errors]
    return HeldShard(
        lease=lease,
        target=target,
        engine=engine,
        input_ids=np.array(missing, dtype=np.int64)[good],
        rows=[prepared.rows[place] for place in good],
        truncated=prepared.truncated[good],
        block=Block(target.id, lease.priority.rank, prepared.lengths[good]),
        errors={missing[place]: error for place, error in prepared.errors.items()},
    )


def prepare(engine: Engine, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
    """What the engine makes of payloads; where it raises, halves are tried until the payload stands alone.

    Where it makes more rows than there are payloads, or fewer, all of these fail: which row is whose nobody knows.
    """
    if not payloads:  # all of the shard's inputs have a result by now; not every engine takes nothing
        return refused(0, ItemFailed(ItemCode.ENGINE_ERROR, ""))
    try:
        prepared = engine.prepare(payloads, params)
    except Exception as error:
        if len(payloads) == 1:
            log.info("an input cannot be prepared: %s", type(error).__name__)
            failed = ItemFailed(ItemCode.ENGINE_ERROR, describe(error))
            return refused(1, failed)
    else:
        counts = len(prepared.rows), len(prepared.lengths), len(prepared.truncated)
        if {*counts} == {len(payloads)}:
            return prepared
        said = f"engine {type(engine).__name__} made {counts[0]} rows of {len(payloads)} inputs"
        log.error("%s, %d lengths and %d marks: none of them is computed", said, *counts[1:])
        return refused(len(payloads), ItemFailed(ItemCode.INVALID_OUTPUT, said))
    middle = len(payloads) // 2
    first, second = (prepare(engine, half, params) for half in (payloads[:middle], payloads[middle:]))
    return Prepared(
        rows=[*first.rows, *second.rows],
        lengths=np.concatenate([first.lengths, second.lengths]),
        truncated=np.concatenate([first.truncated, second.truncated]),
        errors={**first.errors, **{middle + place: error for place, error in second.errors.items()}},
    )
