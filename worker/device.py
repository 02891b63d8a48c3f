"""A device and its lanes: threads that take micro-batches from the batcher, put them through a model, and hand on.

A lane is a thread that carries one pass at a time; all lanes share the weights. How many passes of a model stand
beside one another, and how many of the device's cores each takes, its compute plan says.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from functools import partial
from threading import get_ident
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from contracts import logs
from contracts.errors import ItemFailed
from contracts.models import ModelSpec, TargetSpec
from worker.batcher import Block, MicroBatch, MicroBatcher
from worker.engines.base import Output
from worker.forward import forward
from worker.outputs import OutputForm
from worker.shards import HeldShard
from worker.vital import vital_thread

log = logging.getLogger(__name__)
T = TypeVar("T")

NICENESS = 10


@dataclass(frozen=True)
class Computed:
    """What a micro-batch gave for the rows of one shard."""

    shard: HeldShard
    rows: NDArray[np.intp]
    """All rows, in the order of the shard."""
    input_ids: NDArray[np.int64]
    """Those with an output."""
    truncated: NDArray[np.bool_]
    outputs: Output | None
    errors: dict[int, ItemFailed]
    """By input id: those without."""
    last: bool
    """Whether every row of the shard has been through the model now."""


@dataclass(eq=False)
class _Pass:
    """What a lane is busy with."""

    target: Hashable
    """None for a call, which has the device to itself."""
    threads: int
    """Cores that it takes."""
    shards: list[HeldShard]
    """Those that have rows in it."""
    began: float = field(default_factory=time.monotonic)
    """When the forward pass began; again with each that follows in the same micro-batch or call."""


class Device:
    """Holds the shards of this process and computes them, most urgent first.

    Args:
        deliver: Takes what was computed; called from the lanes, so it must not take long.
        observe: Told of each micro-batch that went through a model, and the seconds that it took; called alike.
        cores: Threads that all passes together may have.
        enter_lane: Called on a lane before its first pass with another number of threads, with that number.
    """

    def __init__(
        self,
        deliver: Callable[[list[Computed]], None],
        observe: Callable[[ModelSpec, MicroBatch, float], None] = lambda *_: None,
        cores: int = 1,
        enter_lane: Callable[[int], None] = lambda threads: None,
    ) -> None:
        self._deliver = deliver
        self._observe = observe
        self._cores = cores
        self._enter_lane = enter_lane
        self._batcher = MicroBatcher()
        self._shards: dict[Block, HeldShard] = {}
        self._widths: dict[Hashable, tuple[int, int]] = {}
        """By target: the lanes that its passes may have, and the threads of each."""
        self._ceilings: dict[int, int] = {}
        """By model: the most padded tokens of a pass, where memory was too small for more."""
        self._forms: dict[int, OutputForm] = {}
        """By target."""
        self.inputs = 0
        """Inputs that went through a model since the process began."""
        self.tokens = 0
        """Tokens of these inputs, without padding."""
        self._passes: dict[int, _Pass] = {}
        """What is in flight, by the thread of its lane."""
        self._calls: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._changed = threading.Condition()
        self._draining = False
        self._stopping = False
        self._held_back = False
        """Whether the lane that looked last found work that has to wait for cores."""
        self._lanes: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to compute, in one lane; others begin when a model has passes for them."""
        with self._changed:
            self._widen(1)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the device's first lane while no other computes; its result, or what it raised.

        Raises:
            CancelledError: The device drains.
        """
        future: Future[object] = Future()
        with self._changed:
            if self._draining:
                future.cancel()
            else:
                self._calls.append((function, future))
            self._changed.notify_all()
        return future.result()  # type: ignore[return-value]

    def submit(
        self, shard: HeldShard, budget_tokens: int, pass_seconds: float = 0.0, lanes: int = 1, threads: int = 1
    ) -> None:
        """Take a shard in; its `finished` event is set once each row has a stored result or a known error.

        Args:
            shard: What is to be computed.
            budget_tokens: Padded tokens that a pass of its target holds.
            pass_seconds: What such a pass takes.
            lanes: Passes of its target that may stand beside one another.
            threads: Cores that each of them takes.
        """
        with self._changed:
            if self._draining:
                shard.abandon()
                return
            self._follow(shard)
            if len(shard.input_ids) == 0:
                shard.finished.set()
                return
            self._shards[shard.block] = shard
            ceiling = self._ceilings.get(shard.target.model.id, budget_tokens)
            self._batcher.set_budget(shard.block.target, min(budget_tokens, ceiling), pass_seconds)
            self._widths[shard.block.target] = lanes, threads
            self._widen(lanes)
            self._batcher.add(shard.block, time.monotonic())
            self._changed.notify_all()

    def _follow(self, shard: HeldShard) -> None:
        """Leave to other shards of the same target what they compute already."""
        alone = np.ones(len(shard.input_ids), dtype=np.bool_)
        for other in self._shards.values():
            if other.target.id == shard.target.id:
                shared = alone & np.isin(shard.input_ids, other.input_ids[~other.settled])
                if shared.any():
                    other.followers.append((shard, frozenset(shard.input_ids[shared].tolist())))
                    # Or urgent rows would wait behind all that comes before those that they follow.
                    other.block.rank = min(other.block.rank, shard.block.rank)
                    alone &= ~shared
        shard.block.order = shard.block.order[alone[shard.block.order]]
        shard.uncomputed = int(alone.sum())
        shard.followed = len(alone) - shard.uncomputed

    def settle(self, computed: Iterable[Computed]) -> None:
        """Note that results are in the database."""
        with self._changed:
            for part in computed:
                part.shard.settle(part.rows, part.errors)
            for block in [block for block, shard in self._shards.items() if shard.finished.is_set()]:
                del self._shards[block]

    def abandon(self, lost: Callable[[HeldShard], bool]) -> None:
        """Let shards go: nothing more of them is computed, a micro-batch in flight is finished."""
        with self._changed:
            for block, shard in list(self._shards.items()):
                if lost(shard):
                    self._batcher.drop(block)
                    shard.abandon()
            for block in [block for block, shard in self._shards.items() if shard.abandoned]:
                self._batcher.drop(block)
                del self._shards[block]

    def drain(self) -> None:
        """Let go all shards and calls that are held, and those still to come; what is in flight is finished."""
        with self._changed:
            self._draining = True
            while self._calls:
                self._calls.popleft()[1].cancel()
        self.abandon(lambda _: True)

    def stop(self) -> None:
        """Drain, and end after the micro-batches in flight."""
        self.drain()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.join()

    def checkpoint(self) -> None:
        """To be called on a lane before each forward pass, and between the steps of a long one.

        Raises:
            CancelledError: The device drains, or all shards of the lane's micro-batch were abandoned.
        """
        lane = self._lane()
        if self._draining or (lane is not None and lane.shards and all(shard.abandoned for shard in lane.shards)):
            raise CancelledError
        self._begin_pass()

    def _begin_pass(self) -> None:
        if (lane := self._lane()) is not None:
            lane.began = time.monotonic()

    def _lane(self) -> _Pass | None:
        """What the calling thread is busy with; a thread that is no lane belongs to a call, which is alone then."""
        return self._passes.get(get_ident()) or next(iter(list(self._passes.values())), None)

    def stalled_for(self) -> float:
        """Seconds since the longest pass in flight began; 0 when there is none."""
        now = time.monotonic()
        return max((now - lane.began for lane in list(self._passes.values())), default=0.0)

    def _widen(self, lanes: int) -> None:
        """Have at least so many lanes."""
        while len(self._lanes) < lanes:
            number = len(self._lanes)
            name = f"device-{number}" if number else "device"  # by which probes know the first
            self._lanes.append(vital_thread(name, partial(self._loop, number)))
            self._lanes[-1].start()

    def _loop(self, number: int) -> None:
        yield_to_others()
        threads = 0
        while (work := self._await_work(number)) is not None:
            lane, run = work
            if lane.target is not None and lane.threads != threads:
                threads = lane.threads
                self._enter_lane(threads)
            elif lane.target is None:
                threads = 0  # a call may change them
            try:
                run()
            finally:
                # Or an engine that left memory would stay there until the next pass.
                del work, run, lane
                with self._changed:
                    del self._passes[get_ident()]
                    self._changed.notify_all()

    def _await_work(self, number: int) -> tuple[_Pass, Callable[[], None]] | None:
        """The next thing that this lane does, noted as in flight; None when the device stops."""
        with self._changed:
            while not self._stopping:
                if (work := self._take(number)) is not None:
                    self._passes[get_ident()] = work[0]
                    return work
                # What ends, or comes, wakes the lanes; a block that waits for company is ripe at a known time.
                wake_at = None if self._calls or self._held_back else self._batcher.wake_at()
                self._changed.wait(None if wake_at is None else max(wake_at - time.monotonic(), 0.001))
            return None

    def _take(self, number: int) -> tuple[_Pass, Callable[[], None]] | None:
        self._held_back = False
        if self._calls:
            if number > 0 or self._passes:
                return None
            call = self._calls.popleft()
            return _Pass(None, self._cores, []), lambda: self._run_call(*call)
        batch = self._batcher.next(time.monotonic(), lambda target: self._admits(target, number))
        if batch is None:
            return None
        shards = [self._shards[part.block] for part in batch.parts]
        return _Pass(batch.target, self._widths[batch.target][1], shards), lambda: self._run_batch(batch, shards)

    def _admits(self, target: Hashable, number: int) -> bool:
        """Whether a pass of the target may begin in this lane, beside those in flight."""
        lanes, threads = self._widths[target]
        taken = sum(lane.threads for lane in self._passes.values())
        mine = sum(lane.target == target for lane in self._passes.values())
        # A lane keeps the threads that it ever had: the first lanes alone have wide passes, or there would be more
        # threads than cores.
        free = (
            number < max(self._cores // threads, 1) and mine < lanes and (not taken or taken + threads <= self._cores)
        )
        self._held_back |= not free
        return free

    @staticmethod
    def _run_call(function: Callable[[], object], future: Future[object]) -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    def _run_batch(self, batch: MicroBatch, shards: list[HeldShard]) -> None:
        try:
            with logs.bound(
                model=shards[0].target.model.reference,
                job=logs.Ids([shard.lease.job_id for shard in shards]),
                shard=logs.Ids([shard.lease.shard_id for shard in shards]),
            ):
                computed = self._compute(batch, shards)
        except CancelledError:
            log.info(
                "%d inputs in the middle of a pass are let go: their shards are", sum(len(p.rows) for p in batch.parts)
            )
        else:
            self._deliver(computed)

    def _compute(self, batch: MicroBatch, shards: list[HeldShard]) -> list[Computed]:
        """Put a micro-batch through the model.

        Where the engine gives another number of outputs than it was given rows, it is broken, and what waits of these
        shards fails with the micro-batch. What earlier passes gave in the right number stays: it may be stored by now,
        and nothing tells it from what is true.
        """
        rows = [shard.rows[row] for part, shard in zip(batch.parts, shards, strict=True) for row in part.rows.tolist()]
        target = shards[0].target
        began = time.perf_counter()
        result = forward(shards[0].engine, rows, target.params, self._form(target), self._begin_pass)
        used = None if result.outputs is None else shards[0].engine.used_tokens(result.outputs)
        if used is not None:
            batch = replace(batch, real_tokens=used)
        self._observe(target.model, batch, time.perf_counter() - began)
        places = np.array(result.places, dtype=np.int64)
        computed = []
        start = 0
        with self._changed:
            self.inputs += len(rows)
            self.tokens += batch.real_tokens
            if result.fitting is not None:
                self._lower_ceiling(target, result.fitting * batch.padded_tokens // len(rows), shards)
            for part, shard in zip(batch.parts, shards, strict=True):
                stop = start + len(part.rows)
                mine = slice(*np.searchsorted(places, [start, stop]).tolist())
                good = part.rows[places[mine] - start]
                given_up = {} if result.broken is None else dict.fromkeys(self._withdraw(shard), result.broken)
                shard.count(len(part.rows), batch, len(rows))
                computed.append(
                    Computed(
                        shard=shard,
                        rows=np.concatenate([part.rows, np.array([*given_up], np.intp)]),
                        input_ids=shard.input_ids[good],
                        truncated=shard.truncated[good],
                        outputs=None if result.outputs is None else result.outputs[mine],
                        errors={
                            int(shard.input_ids[part.rows[place - start]]): error
                            for place, error in result.errors.items()
                            if start <= place < stop
                        }
                        | {int(shard.input_ids[row]): error for row, error in given_up.items()},
                        last=shard.uncomputed == 0,
                    )
                )
                start = stop
        return computed

    def _withdraw(self, shard: HeldShard) -> list[int]:
        """Rows of a shard that wait, which are not computed any more."""
        self._batcher.drop(shard.block)
        rows: list[int] = shard.block.order.tolist()
        shard.uncomputed -= len(rows)
        return rows

    def _form(self, target: TargetSpec) -> OutputForm:
        if target.id not in self._forms:
            self._forms[target.id] = OutputForm(target.model.task, target.params, target.model.engine)
        return self._forms[target.id]

    def _lower_ceiling(self, target: TargetSpec, tokens: int, shards: list[HeldShard]) -> None:
        """Let passes of the model hold no more than this; the shards tell it to the database when they are closed."""
        log.warning("%s: a pass ran out of memory, they hold at most %d tokens now", target.model.reference, tokens)
        self._ceilings[target.model.id] = tokens
        for held in self._shards.values():
            if held.target.model.id == target.model.id:
                self._batcher.lower_budget(held.target.id, tokens)
        for shard in shards:
            shard.ceiling_tokens = tokens


def yield_to_others() -> None:
    """Let others go before this thread, and the threads that it starts from now on, where the system is Linux.

    The threads that feed the device, and Postgres and clients on the same machine, need little and at once: they go
    before arithmetic.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
