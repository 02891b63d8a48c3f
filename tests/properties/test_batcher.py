"""The micro-batcher, against a model that only counts rows."""

from collections import Counter

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.batcher import LINGER, Block, MicroBatch, MicroBatcher

targets = st.sampled_from(["a", "b"])
lengths = st.lists(st.integers(0, 40), max_size=12)


class Batching(RuleBasedStateMachine):
    """Blocks come and go while micro-batches are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher = MicroBatcher()
        self.now = 0.0
        self.budgets: dict[str, int] = {}
        self.waiting: dict[Block, set[int]] = {}
        """Rows of each block that were not drawn yet, in the order of arrival."""
        self.drawn: Counter[tuple[int, int]] = Counter()
        for target in ("a", "b"):
            self.set_budget(target, 64)

    @rule(of=targets, tokens=st.integers(1, 100))
    def set_budget(self, of: str, tokens: int) -> None:
        self.budgets[of] = tokens
        self.batcher.set_budget(of, tokens)

    @rule(of=targets, rank=st.integers(0, 2), lengths=lengths)
    def add(self, of: str, rank: int, lengths: list[int]) -> None:
        block = Block(of, rank, np.array(lengths, dtype=np.int32))
        self.batcher.add(block, self.now)
        if lengths:
            self.waiting[block] = set(range(len(lengths)))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(list(self.waiting)))
        self.batcher.drop(block)
        del self.waiting[block]

    @rule(seconds=st.sampled_from([0.0, LINGER[0] / 3, LINGER[0], 1.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def draw(self) -> None:
        batch = self.batcher.next(self.now)
        if batch is None:
            # Only for what came just now, is not urgent and does not fill a pass.
            for block in self.waiting:
                assert block.rank > 0
                assert self.now < block.arrived + LINGER[0]
        else:
            self._take(batch)

    @rule()
    def drain(self) -> None:
        self.now += LINGER[0]
        for _ in range(sum(map(len, self.waiting.values()))):
            batch = self.batcher.next(self.now)
            assert batch is not None
            self._take(batch)
            if not self.waiting:
                break
        assert not self.waiting, "rows are left that no pass takes"
        assert self.batcher.next(self.now) is None

    def _lead(self, target: object) -> Block:
        return min(
            (block for block in self.waiting if block.target == target), key=lambda block: (block.rank, block.arrived)
        )

    def _patient(self, lead: Block) -> bool:
        """Whether what waits for the lead's target may wait for company."""
        same = [block for block in self.waiting if block.target == lead.target]
        room = max(self.budgets[str(lead.target)] // max(max(lead.lengths[row] for row in self.waiting[lead]), 1), 1)
        return (
            lead.rank > 0
            and sum(len(self.waiting[block]) for block in same) < room
            and all(self.now < block.arrived + LINGER[0] for block in same)
        )

    def _take(self, batch: MicroBatch) -> None:
        lead = self._lead(batch.target)
        urgent = min(self.waiting, key=lambda block: (block.rank, block.arrived))
        assert lead is urgent or lead.target != urgent.target
        assert lead.target == urgent.target or self._patient(urgent), "less urgent rows went first for no reason"
        budget = self.budgets[str(batch.target)]
        rows = [(part.block, int(row)) for part in batch.parts for row in part.rows]
        sizes = [int(block.lengths[row]) for block, row in rows]
        # The most urgent block is served first, by its longest rows.
        assert rows[0][0] is lead
        assert sizes[0] == max(lead.lengths[row] for row in self.waiting[lead])
        assert {block.target for block, _ in rows} == {batch.target}
        assert lead.rank > 0 or all(block.rank == 0 for block, _ in rows)
        # What is said of it is so, and it fits.
        assert batch.real_tokens == sum(sizes)
        assert batch.padded_tokens == max(sizes) * len(sizes)
        assert batch.padded_tokens <= max(budget, sizes[0]) or len(rows) == 1
        assert batch.budget_tokens >= batch.padded_tokens
        # No room is left for rows that would have fitted under the longest.
        for block, row in rows:
            assert row in self.waiting[block], "a row came out twice, or of a block that was dropped"
            self.waiting[block].remove(row)
        room = budget // max(max(sizes), 1) - len(rows)
        if room > 0:
            for block, left in self.waiting.items():
                if block.target == batch.target and (lead.rank > 0 or block.rank == 0):
                    assert all(block.lengths[row] > max(sizes) for row in left)
        self.waiting = {block: left for block, left in self.waiting.items() if left}

    @invariant()
    def it_wakes_in_time(self) -> None:
        wake = self.batcher.wake_at()
        assert (wake is None) is (not self.waiting)
        if wake is not None:
            assert wake == min(block.arrived for block in self.waiting) + LINGER[0]


TestBatching = Batching.TestCase
