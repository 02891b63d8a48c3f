"""An engine for tests: rows are numbers, and what comes out of a pass is the test's to say; shards to compute by it."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Self
from uuid import UUID

import numpy as np

from contracts.models import TargetSpec
from contracts.states import Priority
from storage.shards import Lease
from tests.models import model_spec
from worker.batcher import Block
from worker.engines.base import Engine, Output, Prepared
from worker.shards import HeldShard

_numbers = count(1)


def as_vectors(rows: list[int]) -> Output:
    return np.array([[row, -row] for row in rows], np.float32)


class RowEngine(Engine):
    """Notes the rows of each pass before it computes them."""

    def __init__(self, compute: Callable[[list[int]], Output] = as_vectors) -> None:
        self._compute = compute
        self.passes: list[list[int]] = []
        self.freed = 0

    @classmethod
    def load(cls, *_: object) -> Self:
        raise NotImplementedError

    @property
    def memory_bytes(self) -> int:
        return 0

    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        raise NotImplementedError

    def synthetic(self, length: int, count: int) -> list[int]:
        """Each row is its length."""
        return [length] * count

    def run(self, rows: Sequence[int], params: Mapping[str, Any]) -> Output:
        self.passes.append(list(rows))
        return self._compute(list(rows))

    def free_memory(self) -> None:
        self.freed += 1


def hold(
    engine: Engine,
    ids: Sequence[int],
    *,
    target: int = 1,
    priority: Priority = Priority.NORMAL,
    lengths: Sequence[int] | None = None,
    truncated: Sequence[int] = (),
    model: int = 1,
) -> HeldShard:
    """A leased shard whose rows are the ids of its inputs."""
    number = next(_numbers)
    lease = Lease(
        shard_id=UUID(int=number),
        job_id=UUID(int=0),
        target_id=target,
        token=UUID(int=-number % 2**128),
        attempt=1,
        alone=False,
        loading=False,
        priority=priority,
        input_ids=list(ids),
    )
    tokens = np.array([4] * len(ids) if lengths is None else lengths, dtype=np.int32)
    return HeldShard(
        lease=lease,
        target=TargetSpec(id=target, model=model_spec(id=model), params={}),
        engine=engine,
        input_ids=np.array(ids, dtype=np.int64),
        rows=list(ids),
        truncated=np.isin(ids, list(truncated)),
        block=Block(target, priority.rank, tokens),
    )
