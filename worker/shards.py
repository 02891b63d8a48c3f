"""A shard in this process: its rows, what became of them, and who waits for it."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ItemFailed
from contracts.models import TargetSpec
from storage.counting import ShardOutcome
from storage.results import shard_bytes
from storage.shards import Lease
from worker.batcher import Block, MicroBatch
from worker.engines.base import Engine, Row


@dataclass(eq=False)
class HeldShard:
    """A leased shard on its way through the device; all arrays have an entry for each input yet to be computed.

    Not safe for threads by itself: the `Device` that holds it changes it under its lock.
    """

    lease: Lease
    target: TargetSpec
    engine: Engine
    input_ids: NDArray[np.int64]
    rows: list[Row]
    truncated: NDArray[np.bool_]
    block: Block
    errors: dict[int, ItemFailed] = field(default_factory=dict)
    """By input id."""
    uncomputed: int = 0
    """Rows of its own that have not been through the model."""
    settled: NDArray[np.bool_] = field(init=False)
    """Rows whose result or error is safe."""
    followers: list[tuple["HeldShard", frozenset[int]]] = field(default_factory=list)
    """Shards that hold some of the same inputs and wait for this one to compute them."""
    followed: int = 0
    """Rows that other shards compute."""
    computed_at: int | None = None
    """When the last row of its own had been through the model, in nanoseconds since the epoch."""
    micro_batches: float = 0.0
    real_tokens: int = 0
    padded_tokens: int = 0
    budget_tokens: int = 0
    ceiling_tokens: int | None = None
    """Where memory was too small for a pass that it was in: the padded tokens that went through."""
    abandoned: bool = False
    """Whether it was let go before all of its rows were settled: the lease was lost, or the process ends."""
    finished: threading.Event = field(default_factory=threading.Event)
    shard_bytes: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.shard_bytes = shard_bytes(self.lease.shard_id)
        self.settled = np.zeros(len(self.input_ids), dtype=np.bool_)

    def count(self, rows: int, batch: MicroBatch, total_rows: int) -> None:
        """Note that some of its rows were in a micro-batch; the pass is shared out by rows."""
        share = rows / total_rows
        self.uncomputed -= rows
        if self.uncomputed == 0:
            self.computed_at = time.time_ns()
        self.micro_batches += share
        self.real_tokens += round(batch.real_tokens * share)
        self.padded_tokens += round(batch.padded_tokens * share)
        self.budget_tokens += round(batch.budget_tokens * share)

    def settle(self, rows: NDArray[np.intp], errors: dict[int, ItemFailed]) -> None:
        """Note that rows are safe: their results are in the database, or their errors (by input id) are known."""
        self._settle(rows, errors)
        settled = set(self.input_ids[rows].tolist()) if self.followers else set()
        for follower, shared in self.followers:
            if mine := shared & settled:
                theirs = np.flatnonzero(np.isin(follower.input_ids, np.fromiter(mine, np.int64)))
                follower._settle(theirs, {i: error for i, error in errors.items() if i in mine})

    def _settle(self, rows: NDArray[np.intp], errors: dict[int, ItemFailed]) -> None:
        self.errors.update(errors)
        self.settled[rows] = True
        if self.settled.all():
            self.finished.set()

    def abandon(self) -> None:
        """Let it go; whoever waits for it wakes up."""
        self.abandoned = True
        self.finished.set()
        for follower, _ in self.followers:
            follower.abandon()

    def outcome(self) -> ShardOutcome:
        """What is to be written when it is closed."""
        return ShardOutcome(
            errors=self.errors,
            micro_batches=self.micro_batches,
            real_tokens=self.real_tokens,
            padded_tokens=self.padded_tokens,
            budget_tokens=self.budget_tokens,
        )
