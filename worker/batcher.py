"""The micro-batcher: which rows go through the model in the next forward pass.

Pure: no Celery, torch, database or sleep in it, and the clock is handed in. Rows come in blocks, one for each shard
and target; a micro-batch is drawn from all blocks of one target, whatever their job, most urgent first, rows of
similar length together, up to a budget of padded tokens (longest row times rows).
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

LINGER = 0.01, 0.25
"""Seconds, at least and at most, that a block may wait for company when it alone does not fill a micro-batch."""
WORTH = 0.05
"""Between the two: the share of what a full pass takes. A pass that generates text takes seconds, and half-empty no
less."""


@dataclass(eq=False)
class Block:
    """Rows of one shard that wait for the device.

    Args:
        target: What they are to be computed by; only rows of one target share a forward pass.
        rank: The priority class, 0 for the most urgent.
        lengths: Tokens of each row, `[n]`.
        arrived: When it was added, in the clock of the caller.
    """

    target: Hashable
    rank: int
    lengths: NDArray[np.int32]
    arrived: float = 0.0
    order: NDArray[np.intp] = field(init=False)
    """Rows that wait, longest first."""

    def __post_init__(self) -> None:
        self.order = np.argsort(-self.lengths, kind="stable")


@dataclass(frozen=True)
class Part:
    """The rows that one block gives to a micro-batch."""

    block: Block
    rows: NDArray[np.intp]


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model in one forward pass."""

    target: Hashable
    parts: list[Part]
    real_tokens: int
    padded_tokens: int
    budget_tokens: int


class MicroBatcher:
    """Blocks in, micro-batches out.

    >>> batcher = MicroBatcher()
    >>> batcher.set_budget("t", 8)
    >>> batcher.add(Block("t", 1, np.array([2, 4, 4, 1], dtype=np.int32)), now=0.0)
    >>> [part.rows.tolist() for part in batcher.next(now=1.0).parts]
    [[1, 2]]
    >>> [part.rows.tolist() for part in batcher.next(now=1.0).parts]
    [[0, 3]]
    >>> batcher.next(now=1.0) is None
    True
    """

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._budgets: dict[Hashable, int] = {}
        self._lingers: dict[Hashable, float] = {}

    def set_budget(self, target: Hashable, tokens: int, pass_seconds: float = 0.0) -> None:
        """The padded tokens that a micro-batch of the target holds, and what that takes; a longer row goes alone."""
        self._budgets[target] = tokens
        self._lingers[target] = min(max(LINGER[0], WORTH * pass_seconds), LINGER[1])

    def lower_budget(self, target: Hashable, tokens: int) -> None:
        """The padded tokens that a micro-batch of the target holds at most from now on."""
        self._budgets[target] = min(self._budgets[target], tokens)

    def add(self, block: Block, now: float) -> None:
        """Take a block in."""
        block.arrived = now
        if len(block.order):
            self._blocks.append(block)

    def drop(self, block: Block) -> None:
        """Forget what waits of a block; rows in flight are not touched."""
        self._blocks = [other for other in self._blocks if other is not block]

    def next(self, now: float, admits: Callable[[Hashable], bool] = lambda target: True) -> MicroBatch | None:
        """The micro-batch to compute now; None when nothing waits, or what waits is worth a moment's patience.

        Args:
            now: In the clock of the caller.
            admits: Whether there is room for a pass of a target now. What is most urgent waits for it, and what is
                less urgent behind it, or narrow passes would keep a wide one out for good.
        """
        leads: dict[Hashable, Block] = {}
        for block in sorted(self._blocks, key=_urgency):
            leads.setdefault(block.target, block)
        for lead in leads.values():
            if not admits(lead.target):
                return None
            if (batch := self._led_by(lead, now)) is not None:
                return batch
            # While the most urgent target waits for company, others need not.
        return None

    def _led_by(self, lead: Block, now: float) -> MicroBatch | None:
        """A micro-batch that begins with the lead's longest row, unless it is worth a moment's patience."""
        budget = self._budgets[lead.target]
        # Interactive rows do not wait for a pass that bulk rows have made long.
        blocks = sorted(
            (b for b in self._blocks if b.target == lead.target and (lead.rank > 0 or b.rank == 0)),
            key=lambda block: (block is not lead, *_urgency(block)),
        )
        longest = int(lead.lengths[lead.order[0]])
        room = max(budget // max(longest, 1), 1)
        available = sum(len(block.order) for block in blocks)
        if available < room and lead.rank > 0 and now < min(map(self._ripe, blocks)):
            return None
        return self._draw(blocks, longest, room, budget)

    def wake_at(self) -> float | None:
        """When `next` may have something that it has not yet; None when nothing waits."""
        return min((self._ripe(block) for block in self._blocks), default=None)

    def _ripe(self, block: Block) -> float:
        """When a block has waited long enough for company."""
        return block.arrived + self._lingers[block.target]

    def _draw(self, blocks: list[Block], longest: int, room: int, budget: int) -> MicroBatch:
        parts = []
        real = count = 0
        # A less urgent class gets what room is left; inside of a class, whatever is closest to the longest row goes
        # first, whoever it belongs to: to empty the lead first would pad its shorter rows.
        for _, of_class in groupby(blocks, key=lambda block: block.rank):
            for part in _take_longest(list(of_class), longest, room - count):
                parts.append(part)
                real += int(part.block.lengths[part.rows].sum())
                count += len(part.rows)
        self._blocks = [block for block in self._blocks if len(block.order)]
        return MicroBatch(
            target=parts[0].block.target,
            parts=parts,
            real_tokens=real,
            padded_tokens=longest * count,
            budget_tokens=max(budget, longest * count),
        )


def _take_longest(blocks: list[Block], limit: int, room: int) -> list[Part]:
    """The longest rows that are no longer than the limit, at most so many; of equals, those of the first block."""
    # `order` is longest first: rows that fit stand together, and what is taken of them is their beginning.
    firsts = [int(np.searchsorted(-block.lengths[block.order], -limit)) for block in blocks]
    fitting = [block.order[first : first + room] for block, first in zip(blocks, firsts, strict=True)]
    lengths = np.concatenate([block.lengths[rows] for block, rows in zip(blocks, fitting, strict=True)])
    owners = np.repeat(np.arange(len(blocks)), [len(rows) for rows in fitting])
    numbers = np.bincount(owners[np.argsort(-lengths, kind="stable")[:room]], minlength=len(blocks))
    parts = []
    for block, first, rows, number in zip(blocks, firsts, fitting, numbers.tolist(), strict=True):
        if number:
            block.order = np.delete(block.order, slice(first, first + number))
            parts.append(Part(block, rows[:number]))
    return parts


def _urgency(block: Block) -> tuple[int, float]:
    return block.rank, block.arrived
