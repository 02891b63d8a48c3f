from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest

from contracts.errors import ModelLoadFailed
from contracts.params import MEASURED_LENGTH as LENGTH
from tests.engines import RowEngine
from worker import budget
from worker.budget import LARGEST, PASSES, PATIENCE, SLACK, measure
from worker.engines.base import Engine, Output


class Timed(RowEngine):
    """An engine whose passes take as long as the test says; the clock is its own."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self._seconds = seconds
        self.now = 0.0
        self.sizes: list[int] = []

    def run(self, rows: Sequence[int], params: Mapping[str, Any]) -> Output:
        self.sizes.append(sum(rows))
        self.now += self._seconds(sum(rows))
        return []

    def clock(self) -> float:
        return self.now


def speeds(table: Mapping[int, float], otherwise: float) -> Timed:
    """Tokens a second by the tokens of a pass."""
    return Timed(lambda tokens: tokens / table.get(tokens, otherwise))


@pytest.fixture(autouse=True)
def _no_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "OVERHEAD", 0.0)


def test_the_fastest_size_is_found() -> None:
    engine = speeds({512: 3e4, 1024: 5e4, 2048: 9e4, 4096: 8.5e4}, 3e4)
    found = measure(engine, {}, clock=engine.clock)
    assert found.tokens == 2048
    assert found.tokens_per_second == pytest.approx(9e4)


def test_the_smallest_that_is_nearly_as_fast_is_taken() -> None:
    just, barely_not = (SLACK + 0.01) * 1e5, (SLACK - 0.01) * 1e5
    engine = speeds({512: barely_not, 1024: just, 2048: 1e5}, 3e4)
    found = measure(engine, {}, clock=engine.clock)
    assert found.tokens == 1024
    assert found.tokens_per_second == pytest.approx(just)


def test_two_sizes_that_gain_next_to_nothing_end_the_search() -> None:
    engine = speeds({512: 5e4, 1024: 5.1e4, 2048: 5.2e4}, 99e4)
    assert measure(engine, {}, clock=engine.clock).tokens == 512
    assert max(engine.sizes) == 2048


def test_one_decline_may_be_an_accident_and_two_are_not() -> None:
    engine = speeds({512: 5e4, 1024: 2e4, 2048: 9e4, 4096: 2e4, 8192: 2e4, 16_384: 99e4}, 1e4)
    assert measure(engine, {}, clock=engine.clock).tokens == 2048
    assert max(engine.sizes) == 8192


def test_a_slow_pass_is_not_doubled() -> None:
    engine = Timed(lambda tokens: 1e-9 if tokens < 2048 else 1.1 * PATIENCE)
    measure(engine, {}, clock=engine.clock)
    assert max(engine.sizes) == 2048
    assert engine.sizes.count(2048) == 1


def test_a_size_that_looked_slow_while_the_machine_was_busy_is_tried_again() -> None:
    slow = 2 * PASSES  # the first two sizes

    def seconds(tokens: int) -> float:
        return tokens / (2e4 if len(engine.sizes) <= 1 + slow else 5e4 if tokens >= 1024 else 3e4)

    engine = Timed(seconds)
    found = measure(engine, {}, clock=engine.clock)
    assert (found.tokens, found.tokens_per_second) == (1024, pytest.approx(5e4))


def test_passes_of_one_size_take_no_longer_than_is_worth() -> None:
    engine = Timed(lambda tokens: 0.4 * PATIENCE if tokens >= 2048 else 1e-3)
    measure(engine, {}, clock=engine.clock)
    assert engine.sizes.count(2048) == 3


def test_the_search_ends() -> None:
    engine = Timed(lambda tokens: 1e-3)  # the larger the faster
    assert measure(engine, {}, clock=engine.clock).tokens == LARGEST
    assert max(engine.sizes) == LARGEST


def test_the_best_of_several_passes_counts_and_the_very_first_does_not() -> None:
    calls: list[int] = []

    def seconds(tokens: int) -> float:
        calls.append(tokens)
        if len(calls) == 1:
            return 60.0
        return tokens / (1e5 if calls.count(tokens) == PASSES else 1e4)

    engine = Timed(seconds)
    assert measure(engine, {}, clock=engine.clock).tokens_per_second == pytest.approx(1e5)
    assert calls[0] == LENGTH
    assert calls[1 : PASSES + 2] == [Engine.smallest_pass] * PASSES + [2 * Engine.smallest_pass]


def test_what_does_not_fit_into_memory_ends_the_search() -> None:
    def seconds(tokens: int) -> float:
        if tokens > 4096:
            raise MemoryError
        return 0.01

    engine = Timed(seconds)
    found = measure(engine, {}, clock=engine.clock)
    assert found.tokens <= found.ceiling == 4096
    assert engine.freed == 1


def test_what_is_not_limited_by_memory_has_no_ceiling() -> None:
    engine = speeds({512: 3e4, 1024: 5e4}, 1e4)
    assert measure(engine, {}, clock=engine.clock).ceiling is None


@pytest.mark.parametrize("holds", [LENGTH, 200])
def test_a_small_memory_gets_a_small_budget(holds: int) -> None:
    def seconds(tokens: int) -> float:
        if tokens > holds:
            raise MemoryError
        return tokens / 1e5

    engine = Timed(seconds)
    found = measure(engine, {}, clock=engine.clock)
    assert (found.tokens, found.ceiling) == ({LENGTH: LENGTH, 200: 128}[holds],) * 2
    assert found.tokens_per_second == pytest.approx(1e5)


def test_a_memory_that_holds_no_row_is_no_place_for_the_model() -> None:
    with pytest.raises(ModelLoadFailed, match="its first pass failed: MemoryError: no message"):
        measure(RowEngine(_raising(MemoryError())), {})


def test_it_may_be_ended_before_each_pass() -> None:
    engine = speeds({}, 1e5)

    def begin_pass() -> None:
        if len(engine.sizes) == 3:
            raise CancelledError

    with pytest.raises(CancelledError):
        measure(engine, {}, begin_pass, engine.clock)
    assert len(engine.sizes) == 3


@pytest.mark.parametrize("largest", [0, LENGTH])
def test_a_model_that_computes_nothing_is_not_loaded(largest: int) -> None:
    def seconds(tokens: int) -> float:
        if tokens > largest:
            raise RuntimeError("mat1 and mat2 do not fit\nsecond line")
        return 1.0

    engine = Timed(seconds)
    with pytest.raises(ModelLoadFailed, match=r"RuntimeError: mat1 and mat2 do not fit$"):
        measure(engine, {}, clock=engine.clock)


def _raising(error: Exception) -> Callable[[list[int]], Output]:
    def compute(_: list[int]) -> Output:
        raise error

    return compute
