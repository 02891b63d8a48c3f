import logging
from collections.abc import Callable, Mapping

import pytest

from contracts.errors import ModelLoadFailed
from contracts.names import Quantization
from tests.engines import RowEngine
from worker import planning
from worker.budget import Measured
from worker.engines.base import Engine
from worker.planning import TRIES, find_plan, undisturbed
from worker.variants import Variant

WIDTHS = [(1, 4), (2, 2), (4, 1)]
SLOW_FIRST = [Variant(Quantization.NF4, "bfloat16"), Variant(Quantization.NF4, "float32")]


class Concurrent(RowEngine):
    def __init__(self, variant: Variant, concurrent: bool = True) -> None:
        super().__init__()
        self.variant = variant
        self._concurrent = concurrent

    @property
    def concurrent(self) -> bool:
        return self._concurrent


class MadeUp:
    """A machine that computes as fast as the test says, by arithmetic and by lanes."""

    def __init__(
        self,
        arithmetic: Mapping[str, float],
        lanes: Mapping[int, float],
        *,
        reloads: bool = False,
        concurrent: bool = True,
        full: int = 99,
    ) -> None:
        self.arithmetic = arithmetic
        self.lanes = lanes
        self.reloads = reloads
        self.loaded: list[Variant] = []
        self.measured: list[tuple[int, int]] = []
        self._concurrent = concurrent
        self._full = full
        """Lanes whose working memory does not fit."""

    def load(self, variant: Variant) -> Engine:
        if variant.dtype not in self.arithmetic:
            raise ModelLoadFailed(f"no {variant.dtype} here")
        self.loaded.append(variant)
        return Concurrent(variant, self._concurrent)

    def glance(self, engine: Engine, threads: int) -> Measured:
        assert isinstance(engine, Concurrent)
        return Measured(512, self.arithmetic[engine.variant.dtype], None)

    def measure(self, engine: Engine, lanes: int, threads: int) -> Measured:
        assert isinstance(engine, Concurrent)
        if self.reloads:
            assert (engine.variant.lanes, engine.variant.threads) == (lanes, threads)
        self.measured.append((lanes, threads))
        if lanes >= self._full:
            raise ModelLoadFailed("its first pass failed: MemoryError")
        return Measured(1024 * lanes, self.lanes[lanes], 2048 * lanes)


def test_the_fastest_arithmetic_is_taken_and_then_the_fastest_lanes() -> None:
    bench = MadeUp({"bfloat16": 22.0, "float32": 64.0}, {1: 64.0, 2: 90.0, 4: 80.0})
    engine, plan = find_plan(bench, SLOW_FIRST, WIDTHS)
    assert isinstance(engine, Concurrent)
    assert engine.variant.dtype == "float32"
    assert (plan.dtype, plan.quantization) == ("float32", "nf4")
    assert (plan.lanes, plan.threads, plan.tokens, plan.ceiling) == (2, 2, 2048, 4096)
    assert plan.tokens_per_second == 90.0
    tried = [(rate.dtype, rate.lanes, rate.threads, rate.tokens_per_second) for rate in plan.rates]
    assert tried == [
        ("bfloat16", 1, 4, 22.0),
        ("float32", 1, 4, 64.0),
        ("float32", 1, 4, 64.0),
        ("float32", 2, 2, 90.0),
        ("float32", 4, 1, 80.0),
    ]


def test_one_choice_is_not_looked_at_twice() -> None:
    bench = MadeUp({"float32": 64.0}, {1: 64.0, 2: 90.0, 4: 95.0})
    _, plan = find_plan(bench, [Variant(Quantization.NONE, "float32")], WIDTHS)
    assert len(bench.loaded) == 1
    assert (plan.lanes, plan.threads) == (4, 1)


@pytest.mark.parametrize(
    ("speeds", "lanes"),
    [({1: 100.0, 2: 98.0, 4: 97.0}, 4), ({1: 100.0, 2: 96.0, 4: 93.0}, 1), ({1: 100.0, 2: 110.0, 4: 105.0}, 2)],
)
def test_more_lanes_are_taken_unless_they_lose(speeds: dict[int, float], lanes: int) -> None:
    bench = MadeUp({"float32": 1.0}, speeds)
    _, plan = find_plan(bench, [Variant(Quantization.NONE, "float32")], WIDTHS)
    assert plan.lanes == lanes


def test_lanes_that_are_clearly_slower_end_the_search() -> None:
    bench = MadeUp({"float32": 1.0}, {1: 100.0, 2: 80.0, 4: 500.0})
    _, plan = find_plan(bench, [Variant(Quantization.NONE, "float32")], WIDTHS)
    assert plan.lanes == 1
    assert bench.measured == [(1, 4), (2, 2)]


def test_lanes_whose_working_memory_does_not_fit_are_too_many() -> None:
    bench = MadeUp({"float32": 1.0}, {1: 10.0, 2: 20.0, 4: 40.0}, full=4)
    _, plan = find_plan(bench, [Variant(Quantization.NONE, "float32")], WIDTHS)
    assert plan.lanes == 2
    with pytest.raises(ModelLoadFailed, match="MemoryError"):
        find_plan(MadeUp({"float32": 1.0}, {}, full=1), [Variant(Quantization.NONE, "float32")], WIDTHS)


def test_an_engine_that_takes_one_pass_at_a_time_has_one_lane_with_all_threads() -> None:
    bench = MadeUp({"float32": 1.0}, {1: 10.0, 2: 20.0, 4: 40.0}, concurrent=False)
    _, plan = find_plan(bench, [Variant(Quantization.NONE, "float32")], WIDTHS)
    assert (plan.lanes, plan.threads) == (1, 4)
    _, plan = find_plan(bench, [Variant(Quantization.NONE, "float32")], [(2, 2)])
    assert (plan.lanes, plan.threads) == (1, 4)


def test_what_has_its_threads_from_the_load_is_loaded_for_each_number_of_lanes() -> None:
    bench = MadeUp({"float32": 1.0}, {1: 10.0, 2: 20.0, 4: 15.0}, reloads=True)
    engine, plan = find_plan(bench, [Variant(Quantization.NONE, "float32")], WIDTHS)
    assert [(variant.lanes, variant.threads) for variant in bench.loaded] == [*WIDTHS, (2, 2)]
    assert isinstance(engine, Concurrent)
    assert (engine.variant.lanes, plan.lanes) == (2, 2)


def test_an_arithmetic_that_cannot_be_computed_is_passed_over() -> None:
    bench = MadeUp({"float32": 64.0}, {1: 1.0, 2: 1.0, 4: 1.0})
    assert find_plan(bench, SLOW_FIRST, WIDTHS).plan.dtype == "float32"
    with pytest.raises(ModelLoadFailed, match="no float32 here"):
        find_plan(MadeUp({}, {}), SLOW_FIRST, WIDTHS)


def rates(*speeds: float) -> Callable[[], Measured]:
    given = iter(speeds)
    return lambda: Measured(512, next(given), None)


class Clock:
    """Seconds that the test lets pass, and the processor seconds that others take of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
        self.now = 0.0
        self.taken = 0.0
        self._shares = iter(shares)
        monkeypatch.setattr(planning.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(planning.os, "cpu_count", lambda: 2)

    def measure(self, look: Callable[[], Measured]) -> Callable[[], Measured]:
        def run() -> Measured:
            self.now += 10
            self.taken += 10 * next(self._shares)
            return look()

        return run


def test_a_measurement_that_others_disturbed_is_repeated_and_the_best_counts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch, 1.0, 0.1)
    with caplog.at_level(logging.WARNING):
        found = undisturbed("minilm@1", 2, clock.measure(rates(50.0, 90.0)), lambda: clock.taken)
    assert found.tokens_per_second == 90.0
    [record] = caplog.records
    assert record.message == ("others took 50 % of the processors while minilm@1 was measured: it is measured again")


def test_a_machine_that_is_always_busy_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch, *[1.0] * TRIES)
    with caplog.at_level(logging.WARNING):
        found = undisturbed("minilm@1", 2, clock.measure(rates(50.0, 40.0, 30.0)), lambda: clock.taken)
    assert found.tokens_per_second == 50.0
    assert "`batchmill models measure` repeats it on a quiet machine" in caplog.records[-1].message


def test_cores_that_a_model_does_not_use_may_be_used_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 1.0)
    assert undisturbed("minilm@1", 1, clock.measure(rates(50.0)), lambda: clock.taken).tokens_per_second == 50.0


def test_what_this_process_uses_is_not_what_others_take() -> None:
    before = planning._taken_by_others()
    assert before >= 0
    assert planning._taken_by_others() - before < 5
