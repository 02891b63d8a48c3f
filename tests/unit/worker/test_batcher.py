import random
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import pytest

from worker.batcher import LINGER, Block, MicroBatch, MicroBatcher

LATE = 1000.0
"""Long after anything lingers."""


def block(lengths: Sequence[int], *, target: Hashable = "t", rank: int = 1) -> Block:
    return Block(target, rank, np.array(lengths, dtype=np.int32))


def batcher(budget: int, *blocks: Block) -> MicroBatcher:
    made = MicroBatcher()
    for number, one in enumerate(blocks):
        made.set_budget(one.target, budget)
        made.add(one, now=number / 1000)
    return made


def drawn(batch: MicroBatch | None) -> list[tuple[Block, list[int]]]:
    assert batch is not None
    return [(part.block, part.rows.tolist()) for part in batch.parts]


def lengths(batch: MicroBatch | None) -> list[int]:
    assert batch is not None
    return [int(length) for part in batch.parts for length in part.block.lengths[part.rows]]


def all_of(made: MicroBatcher) -> list[MicroBatch]:
    batches = []
    while (batch := made.next(LATE)) is not None:
        batches.append(batch)
    return batches


def test_rows_of_similar_length_go_together_the_longest_first() -> None:
    made = batcher(12, block([1, 6, 3, 6, 2, 5, 3]))
    assert [lengths(batch) for batch in all_of(made)] == [[6, 6], [5, 3], [3, 2, 1]]


def test_equal_rows_keep_their_order() -> None:
    one = block([4, 4, 4, 4])
    made = batcher(8, one)
    assert [drawn(batch) for batch in all_of(made)] == [[(one, [0, 1])], [(one, [2, 3])]]


def test_tokens_are_counted() -> None:
    made = batcher(20, block([7, 5, 2]))
    full, rest = all_of(made)
    assert (full.real_tokens, full.padded_tokens, full.budget_tokens) == (12, 14, 20)
    assert (rest.real_tokens, rest.padded_tokens, rest.budget_tokens) == (2, 2, 20)


def test_a_row_beyond_the_budget_goes_alone() -> None:
    long, short = all_of(batcher(10, block([11, 10])))
    assert (lengths(long), long.padded_tokens, long.budget_tokens) == ([11], 11, 11)
    assert (lengths(short), short.budget_tokens) == ([10], 10)


def test_the_urgent_come_first_and_then_the_older() -> None:
    bulk, old, new, urgent = block([1], rank=2), block([1]), block([1]), block([1], rank=0)
    made = batcher(1, bulk, old, new, urgent)
    assert [batch.parts[0].block for batch in all_of(made)] == [urgent, old, new, bulk]


def test_rows_of_other_blocks_keep_company() -> None:
    other = block([4, 4], target="other")
    old, new, bulk = block([4, 2]), block([5, 3, 4]), block([4, 1], rank=2)
    made = batcher(24, other, bulk, old, new)
    made.drop(other)
    # Not longer than the longest of the block that leads, so the row of 5 waits.
    batch = made.next(LATE)
    assert drawn(batch) == [(old, [0, 1]), (new, [2, 1]), (bulk, [0, 1])]
    assert batch is not None
    assert (batch.real_tokens, batch.padded_tokens) == (18, 24)
    assert lengths(made.next(LATE)) == [5]
    assert made.next(LATE) is None


def test_a_row_of_another_block_that_needs_less_padding_goes_first() -> None:
    old, new, bulk = block([8, 2, 1]), block([7, 6, 5]), block([8], rank=2)
    made = batcher(24, old, new, bulk)
    # A less urgent class fills what room is left, however well its rows would fit.
    assert drawn(made.next(LATE)) == [(old, [0]), (new, [0, 1])]
    assert drawn(made.next(LATE)) == [(old, [1, 2])]
    assert drawn(made.next(LATE)) == [(new, [2])]


def test_targets_do_not_mix() -> None:
    one, other = block([2, 2], target=1), block([2, 2], target=2)
    batches = all_of(batcher(100, one, other))
    assert [(batch.target, drawn(batch)) for batch in batches] == [(1, [(one, [0, 1])]), (2, [(other, [0, 1])])]


def test_interactive_rows_go_without_the_company_of_others_and_at_once() -> None:
    normal, urgent, second = block([3] * 5), block([3], rank=0), block([2], rank=0)
    made = batcher(1000, normal, urgent, second)
    batch = made.next(now=0.0021)
    assert drawn(batch) == [(urgent, [0]), (second, [0])]
    assert made.next(now=0.0021) is None
    assert drawn(made.next(LATE)) == [(normal, [0, 1, 2, 3, 4])]


def test_a_block_that_fills_no_pass_lingers_for_company() -> None:
    made = MicroBatcher()
    made.set_budget("t", 12)
    first, second = block([4, 4]), block([4])
    made.add(first, now=5.0)
    assert made.next(now=5.0) is None
    assert made.wake_at() == 5.0 + LINGER[0]
    assert made.next(now=5.0 + LINGER[0] * 0.9) is None
    made.add(second, now=5.0 + LINGER[0] * 0.9)
    assert drawn(made.next(now=5.0 + LINGER[0] * 0.9)) == [(first, [0, 1]), (second, [0])]
    assert made.wake_at() is None
    made.add(block([4]), now=6.0)
    assert lengths(made.next(now=6.0 + LINGER[0])) == [4]


def test_where_a_pass_takes_long_company_is_worth_a_longer_wait() -> None:
    made = MicroBatcher()
    for pass_seconds, linger in ((0.05, 0.01), (2.0, 0.1), (60.0, 0.25)):
        made.set_budget("t", 12, pass_seconds)
        made.add(block([4]), now=0.0)
        assert made.wake_at() == linger
        assert made.next(linger * 0.99) is None
        assert lengths(made.next(linger)) == [4]


def test_who_waits_for_company_holds_up_no_other_target() -> None:
    made = MicroBatcher()
    made.set_budget("slow", 1000, pass_seconds=60.0)
    made.set_budget("ready", 8)
    made.add(Block("slow", 1, np.array([4], np.int32)), now=0.0)
    made.add(Block("ready", 1, np.array([4, 4], np.int32)), now=0.001)
    batch = made.next(now=0.002)
    assert batch is not None
    assert batch.target == "ready"
    assert made.next(now=0.003) is None
    assert made.wake_at() == 0.25


def test_what_is_dropped_does_not_come() -> None:
    kept, dropped = block([4, 4, 4]), block([4, 4, 4])
    made = batcher(8, dropped, kept)
    assert drawn(made.next(LATE)) == [(dropped, [0, 1])]
    made.drop(dropped)
    made.drop(dropped)
    made.drop(block([1]))
    assert [drawn(batch) for batch in all_of(made)] == [[(kept, [0, 1])], [(kept, [2])]]


def test_an_empty_block_is_nothing() -> None:
    made = batcher(8, block([]))
    assert made.next(LATE) is None
    assert made.wake_at() is None


def test_rows_without_tokens_are_rows() -> None:
    [batch] = all_of(batcher(3, block([0, 0, 0])))
    assert (lengths(batch), batch.padded_tokens, batch.budget_tokens) == ([0, 0, 0], 0, 3)


def test_a_budget_may_change() -> None:
    made = batcher(4, block([2] * 6))
    assert len(lengths(made.next(LATE))) == 2
    made.set_budget("t", 8)
    assert len(lengths(made.next(LATE))) == 4


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_each_row_goes_once_and_in_order(seed: int) -> None:
    dice = random.Random(seed)
    made = MicroBatcher()
    budgets = {target: dice.choice([1, 7, 64, 300]) for target in range(3)}
    for target, budget in budgets.items():
        made.set_budget(target, budget)
    waiting: list[Block] = []
    expected: Counter[tuple[int, int]] = Counter()
    seen: Counter[tuple[int, int]] = Counter()
    now = 0.0
    for step in range(300):
        now += dice.choice([0.0, 0.001, 0.02])
        if step < 120 and dice.random() < 0.5:
            sizes = [dice.randint(0, 40) for _ in range(dice.choice([0, 1, 3, 50]))]
            new = block(sizes, target=dice.randrange(3), rank=dice.randrange(3))
            waiting.append(new)
            made.add(new, now)
            expected.update((id(new), row) for row in range(len(sizes)))
        if waiting and dice.random() < 0.02:
            gone = dice.choice(waiting)
            made.drop(gone)
            expected = Counter({key: 1 for key in expected if key[0] != id(gone) or key in seen})
            gone.order = gone.order[:0]
        urgent: dict[object, int] = {}
        for one in waiting:
            if len(one.order):
                urgent[one.target] = min(one.rank, urgent.get(one.target, 9))
        most_urgent = min(urgent.values(), default=None)
        if (batch := made.next(now if step < 200 else LATE)) is None:
            continue
        rows = [(id(part.block), row) for part in batch.parts for row in part.rows.tolist()]
        seen.update(rows)
        sizes = lengths(batch)
        assert {part.block.target for part in batch.parts} == {batch.target}
        assert batch.parts[0].block.rank == urgent[batch.target]
        assert most_urgent != 0 or all(part.block.rank == 0 for part in batch.parts)
        assert batch.real_tokens == sum(sizes)
        assert batch.padded_tokens == max(sizes) * len(sizes)
        assert batch.padded_tokens <= budgets[int(str(batch.target))] or len(sizes) == 1
        assert batch.budget_tokens == max(budgets[int(str(batch.target))], batch.padded_tokens)
        assert sizes[0] == max(sizes)
    for batch in all_of(made):
        seen.update((id(part.block), row) for part in batch.parts for row in part.rows.tolist())
    assert seen == expected
