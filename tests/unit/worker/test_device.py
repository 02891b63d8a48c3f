import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from contracts.errors import ItemFailed
from contracts.states import Priority
from tests.engines import RowEngine, as_vectors, hold
from worker.device import Computed, Device
from worker.engines.base import Output
from worker.shards import HeldShard

SECONDS = 10


class Gated(RowEngine):
    """Rows are input ids; each pass waits until the test lets it through, where the gate is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.bad: set[int] = set()
        self.most = 2**30
        """Rows that memory holds."""

    def run(self, rows: Sequence[int], params: Mapping[str, Any]) -> Output:
        self.passes.append(list(rows))
        self.entered.release()
        assert self.gate.wait(SECONDS)
        if len(rows) > self.most:
            raise MemoryError
        if self.bad & set(rows):
            raise RuntimeError("bad input")
        return np.array(rows, np.float32)[:, None]

    @property
    def computed(self) -> list[int]:
        return [row for rows in self.passes for row in rows]


class Storage:
    """Where the device delivers to: results are settled at once, or when the test says so."""

    def __init__(self) -> None:
        self.device = Device(self.put)
        self.delivered: list[Computed] = []
        self.held: list[Computed] | None = None

    def put(self, computed: list[Computed]) -> None:
        self.delivered += computed
        if self.held is None:
            self.device.settle(computed)
        else:
            self.held += computed

    def hold(self) -> None:
        self.held = []

    def let_go(self) -> None:
        assert self.held is not None
        parts, self.held = self.held, None
        self.device.settle(parts)

    def of(self, shard: HeldShard) -> dict[int, float]:
        return {
            input_id: float(output[0])
            for part in self.delivered
            if part.shard is shard and part.outputs is not None
            for input_id, output in zip(part.input_ids.tolist(), part.outputs, strict=True)
        }


@pytest.fixture
def storage() -> Iterator[Storage]:
    storage = Storage()
    storage.device.start()
    yield storage
    storage.device.stop()


@pytest.fixture
def engine() -> Iterator[Gated]:
    engine = Gated()
    yield engine
    engine.gate.set()


def done(*shards: HeldShard) -> bool:
    return all(shard.finished.wait(SECONDS) for shard in shards)


def test_results_are_delivered_once_and_to_whom_they_belong(storage: Storage, engine: Gated) -> None:
    first = hold(engine, range(100, 200), lengths=[i % 9 for i in range(100)], truncated=[103, 150])
    second = hold(engine, range(200, 250))
    other = hold(engine, range(100, 130), target=2)
    for one in (first, second, other):
        storage.device.submit(one, 40)
    assert done(first, second, other)
    for one in (first, second, other):
        assert storage.of(one) == {input_id: float(input_id) for input_id in one.input_ids.tolist()}
        assert one.outcome().errors == {}
        assert sum(part.last for part in storage.delivered if part.shard is one) == 1
    assert sorted(engine.computed) == sorted([*range(100, 250), *range(100, 130)])
    cut = {int(i) for part in storage.delivered for i in part.input_ids[part.truncated]}
    assert cut == {103, 150}


def test_what_passes_cost_is_shared_out(storage: Storage, engine: Gated) -> None:
    # Neither fills a pass alone, so both share one; which one waits for the other is the clock's to say.
    first, second = hold(engine, [1, 2, 3]), hold(engine, [4], priority=Priority.BULK)
    engine.gate.clear()
    blocker = hold(engine, [9], target=2)
    storage.device.submit(blocker, 4)
    assert engine.entered.acquire(timeout=SECONDS)
    storage.device.submit(first, 20)
    storage.device.submit(second, 20)
    engine.gate.set()
    assert done(first, second)
    assert [len(rows) for rows in engine.passes] == [1, 4]
    outcomes = [one.outcome() for one in (first, second)]
    assert [outcome.micro_batches for outcome in outcomes] == [0.75, 0.25]
    assert [outcome.real_tokens for outcome in outcomes] == [12, 4]
    assert [outcome.padded_tokens for outcome in outcomes] == [12, 4]
    assert [outcome.budget_tokens for outcome in outcomes] == [15, 5]


def test_a_shard_ends_when_its_results_are_stored_and_not_before(storage: Storage, engine: Gated) -> None:
    storage.hold()
    one = hold(engine, [1])
    storage.device.submit(one, 4)
    assert storage.device.call(lambda: True)
    while not storage.delivered:
        assert not one.finished.is_set()
    assert not one.finished.wait(0.01)
    storage.let_go()
    assert one.finished.is_set()


def test_failures_are_told_by_input(storage: Storage, engine: Gated) -> None:
    engine.bad = {2, 12}
    first, second = hold(engine, [1, 2, 3]), hold(engine, [11, 12, 13])
    for one in (first, second):
        storage.device.submit(one, 24)
    assert done(first, second)
    assert set(first.outcome().errors) == {2}
    assert set(second.outcome().errors) == {12}
    assert set(storage.of(first)) == {1, 3}
    assert first.outcome().errors[2].message == "RuntimeError: bad input"


def test_when_all_fail_it_ends(storage: Storage, engine: Gated) -> None:
    engine.bad = {1, 2}
    one = hold(engine, [1, 2])
    one.errors[7] = ItemFailed("too_long", "before it came here")
    storage.device.submit(one, 24)
    assert done(one)
    assert set(one.outcome().errors) == {1, 2, 7}
    assert storage.of(one) == {}


def test_an_engine_that_loses_count_fails_the_rest_of_the_shards_in_its_pass(storage: Storage) -> None:
    def compute(rows: list[int]) -> Output:
        return as_vectors(rows[1:] if 4 in rows else rows)

    engine = RowEngine(compute)
    shard, follower = hold(engine, range(8)), hold(engine, [6, 20])
    other = hold(engine, [10, 11], target=2)

    def submit() -> None:  # on the device's thread, so that it computes nothing meanwhile
        for one in (shard, follower, other):
            storage.device.submit(one, 8)

    storage.device.call(submit)
    assert done(shard, follower, other)
    errors = shard.outcome().errors
    # Two rows a pass: those of the first two stay, the third is wrong, the fourth never comes.
    assert storage.of(shard) == {row: float(row) for row in range(4)}
    assert {row: error.item_code for row, error in errors.items()} == dict.fromkeys(range(4, 8), "invalid_output")
    assert {error.message for error in errors.values()} == {"engine 'fake' gave 1 outputs for 2 inputs"}
    assert not {6, 7} & {row for rows in engine.passes for row in rows}
    assert sum(part.last for part in storage.delivered if part.shard is shard) == 1
    # Who waits for a row of it hears of its error; what else he holds, and shards of other passes, are computed.
    assert set(follower.outcome().errors) == {6}
    assert storage.of(follower) == {20: 20.0}
    assert storage.of(other) == {10: 10.0, 11: 11.0}
    assert (shard.outcome().real_tokens, storage.device.inputs) == (3 * 8, 6 + 1 + 2)


def test_a_shard_with_nothing_to_compute_is_finished(storage: Storage, engine: Gated) -> None:
    one = hold(engine, [])
    storage.device.submit(one, 24)
    assert one.finished.is_set()
    assert not one.abandoned


class TestTheSameInput:
    """Held by several shards of one target at once."""

    @pytest.mark.parametrize("bad", [set(), {3}, {3, 4}])
    def test_is_computed_once_and_all_of_them_end(self, storage: Storage, engine: Gated, bad: set[int]) -> None:
        engine.bad = bad
        engine.gate.clear()
        first, second = hold(engine, [1, 2, 3, 4]), hold(engine, [3, 4, 5, 6])
        third, same = hold(engine, [5, 4, 1, 7]), hold(engine, [3, 4])
        everyone = (first, second, third, same)
        for one in everyone:
            storage.device.submit(one, 8)
        engine.gate.set()
        assert done(*everyone)
        if not bad:
            assert sorted(engine.computed) == [1, 2, 3, 4, 5, 6, 7]
        for one in everyone:
            assert set(one.outcome().errors) == bad & set(one.input_ids.tolist())
            assert not one.abandoned
        assert sorted(i for one in everyone for i in storage.of(one)) == sorted({1, 2, 3, 4, 5, 6, 7} - bad)

    def test_is_left_to_whoever_has_computed_it_but_not_stored_it_yet(self, storage: Storage, engine: Gated) -> None:
        storage.hold()
        first = hold(engine, [1, 2])
        storage.device.submit(first, 8)
        assert engine.entered.acquire(timeout=SECONDS)
        second = hold(engine, [2, 1])
        storage.device.submit(second, 8)
        storage.device.call(lambda: None)
        assert not second.finished.is_set()
        while len(storage.delivered) < 1:
            storage.device.call(lambda: None)
        storage.let_go()
        assert done(first, second)
        assert sorted(engine.computed) == [1, 2]

    def test_is_computed_again_once_it_is_settled(self, storage: Storage, engine: Gated) -> None:
        # It would be found in the database before: who comes here all the same has a reason.
        for _ in range(2):
            one = hold(engine, [1])
            storage.device.submit(one, 8)
            assert done(one)
        assert engine.computed == [1, 1]

    def test_is_not_waited_for_where_it_is_settled(self, storage: Storage, engine: Gated) -> None:
        storage.hold()
        first, second = hold(engine, [1, 2]), hold(engine, [1])
        storage.device.submit(first, 4)
        while len(storage.delivered) < 2:
            storage.device.call(lambda: None)
        storage.device.settle(storage.delivered[:1])
        storage.held = None
        storage.device.submit(second, 4)
        assert done(second)
        assert engine.computed == [1, 2, 1]
        assert not first.finished.is_set()

    def test_of_another_target_is_another_result(self, storage: Storage, engine: Gated) -> None:
        first, second = hold(engine, [1]), hold(engine, [1], target=2)
        for one in (first, second):
            storage.device.submit(one, 8)
        assert done(first, second)
        assert engine.computed == [1, 1]

    def test_is_as_urgent_as_the_most_urgent_who_waits_for_it(self, storage: Storage, engine: Gated) -> None:
        engine.gate.clear()
        storage.device.submit(hold(engine, [1]), 4)
        assert engine.entered.acquire(timeout=SECONDS)
        bulk = hold(engine, [5, 6], priority=Priority.BULK)
        normal = hold(engine, range(10, 20))
        urgent = hold(engine, [5, 6], priority=Priority.INTERACTIVE)
        for one in (bulk, normal, urgent):
            storage.device.submit(one, 8)
        engine.gate.set()
        assert done(bulk, normal, urgent)
        assert engine.passes[1] == [5, 6]

    def test_wakes_those_who_wait_when_it_is_abandoned(self, storage: Storage, engine: Gated) -> None:
        engine.gate.clear()
        storage.device.submit(hold(engine, [99], target=2), 4)
        assert engine.entered.acquire(timeout=SECONDS)
        first, second, third = hold(engine, [1, 2]), hold(engine, [2, 3]), hold(engine, [8])
        for one in (first, second, third):
            storage.device.submit(one, 4)
        storage.device.abandon(lambda held: held is first)
        assert (first.abandoned, second.abandoned, third.abandoned) == (True, True, False)
        assert first.finished.is_set()
        assert second.finished.is_set()
        # Nobody follows one that is gone.
        fourth = hold(engine, [1, 2])
        storage.device.submit(fourth, 4)
        engine.gate.set()
        assert done(third, fourth)
        assert sorted(engine.computed) == [1, 2, 8, 99]


def test_what_is_in_flight_when_it_is_abandoned_is_still_delivered(storage: Storage, engine: Gated) -> None:
    engine.gate.clear()
    one = hold(engine, [1, 2, 3, 4])
    storage.device.submit(one, 8)
    assert engine.entered.acquire(timeout=SECONDS)
    storage.device.abandon(lambda _: True)
    assert one.finished.is_set()
    assert one.abandoned
    engine.gate.set()
    while not storage.delivered:
        storage.device.call(lambda: None)
    assert storage.of(one) == {1: 1.0, 2: 2.0}
    assert engine.computed == [1, 2]


def test_urgent_shards_go_first(storage: Storage, engine: Gated) -> None:
    engine.gate.clear()
    storage.device.submit(hold(engine, [0]), 4)
    assert engine.entered.acquire(timeout=SECONDS)
    made = {
        priority: hold(engine, [10 * priority.rank + 10 + i for i in range(2)], priority=priority)
        for priority in (Priority.BULK, Priority.NORMAL, Priority.INTERACTIVE)
    }
    for one in made.values():
        storage.device.submit(one, 4)
    engine.gate.set()
    assert done(*made.values())
    assert engine.computed == [0, 10, 11, 20, 21, 30, 31]


def test_calls_run_between_passes(storage: Storage, engine: Gated) -> None:
    engine.gate.clear()
    one = hold(engine, range(4))
    storage.device.submit(one, 4)
    assert engine.entered.acquire(timeout=SECONDS)
    with ThreadPoolExecutor(2) as threads:
        call = threads.submit(storage.device.call, lambda: (threading.current_thread().name, len(engine.passes)))
        failing = threads.submit(storage.device.call, _raise(KeyError("mine")))
        while len(storage.device._calls) < 2:
            assert not call.done()
        engine.gate.set()
        assert call.result(SECONDS) == ("device", 1)
        with pytest.raises(KeyError, match="mine"):
            failing.result(SECONDS)
    assert done(one)


def test_calls_that_are_not_reached_are_cancelled() -> None:
    storage, engine = Storage(), Gated()
    engine.gate.clear()
    storage.device.start()
    storage.device.submit(hold(engine, [1]), 4)
    assert engine.entered.acquire(timeout=SECONDS)
    with ThreadPoolExecutor(2) as threads:
        call = threads.submit(storage.device.call, lambda: None)
        while not storage.device._calls:
            assert not call.done()
        stopping = threads.submit(storage.device.stop)
        while not storage.device._stopping:
            assert not stopping.done()
        engine.gate.set()
        with pytest.raises(CancelledError):
            call.result(SECONDS)
        stopping.result(SECONDS)


def test_what_drains_lets_go_of_all_that_is_held_and_all_that_comes(storage: Storage, engine: Gated) -> None:
    engine.gate.clear()
    first, second = hold(engine, [1, 2]), hold(engine, [3])
    storage.device.submit(first, 4)
    assert engine.entered.acquire(timeout=SECONDS)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(storage.device.call, lambda: None)
        while not storage.device._calls:
            assert not call.done()
        storage.device.drain()
        with pytest.raises(CancelledError):
            call.result(SECONDS)
    storage.device.submit(second, 4)
    assert done(first, second)
    assert first.abandoned
    assert second.abandoned
    with pytest.raises(CancelledError):
        storage.device.call(lambda: None)
    engine.gate.set()
    while not storage.delivered:
        assert storage.device._lanes[0].is_alive()
    assert engine.computed == [1]


class Generating(Gated):
    """Rows hold room for more than they become: each output takes one token."""

    def used_tokens(self, outputs: Output) -> int:
        return len(outputs)


def test_what_only_the_outputs_tell_is_counted_by_them(storage: Storage) -> None:
    shard = hold(Generating(), [1, 2, 3], lengths=[9, 9, 9])
    storage.device.submit(shard, 1000)
    assert done(shard)
    assert storage.device.tokens == 3
    outcome = shard.outcome()
    assert (outcome.real_tokens, outcome.padded_tokens) == (3, 27)


class Stepping(Gated):
    """A pass of many steps, as one that generates text has: its checkpoint ends it, or the gate does."""

    def run(self, rows: Sequence[int], params: Mapping[str, Any]) -> Output:
        self.entered.release()
        while not self.gate.wait(0.001):
            self.checkpoint()
        return super().run(rows, params)


def test_a_long_pass_ends_between_two_steps_when_nobody_waits_for_it(storage: Storage) -> None:
    engine = Stepping()
    engine.checkpoint = storage.device.checkpoint
    engine.gate.clear()
    first, second, next_one = hold(engine, [1, 2]), hold(engine, [3]), hold(engine, [4], target=2)
    storage.device.submit(first, 1000)
    storage.device.submit(second, 1000)
    assert engine.entered.acquire(timeout=SECONDS)
    storage.device.submit(next_one, 1000)
    storage.device.abandon(lambda shard: shard is first)
    # Somebody waits for the other rows of the pass, unless they were in a pass of their own.
    storage.device.abandon(lambda shard: shard is second)
    assert engine.entered.acquire(timeout=SECONDS)
    engine.gate.set()
    assert done(next_one)
    assert storage.of(next_one) == {4: 4.0}
    assert storage.of(first) == storage.of(second) == {}


def test_a_long_pass_ends_when_it_drains(storage: Storage) -> None:
    engine = Stepping()
    engine.checkpoint = storage.device.checkpoint
    engine.gate.clear()
    shard = hold(engine, [1, 2])
    storage.device.submit(shard, 1000)
    assert engine.entered.acquire(timeout=SECONDS)
    storage.device.stop()
    assert done(shard)
    assert shard.abandoned
    assert storage.delivered == []


def test_a_call_of_many_passes_ends_when_it_drains(storage: Storage) -> None:
    passes = threading.Semaphore(0)
    over = threading.Event()

    def endless() -> None:
        while not over.is_set():
            storage.device.checkpoint()
            passes.release()

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(storage.device.call, endless)
        for _ in range(3):
            assert passes.acquire(timeout=SECONDS)
        storage.device.drain()
        try:
            with pytest.raises(CancelledError):
                call.result(SECONDS)
        finally:
            over.set()


class TestMemoryThatIsTooSmall:
    """For the passes that the budget asks for."""

    def test_lowers_the_budgets_of_the_model_for_good(self, storage: Storage, engine: Gated) -> None:
        engine.most = 2
        first = hold(engine, range(100, 116))
        storage.device.submit(first, 32)
        assert done(first)
        assert storage.of(first) == {input_id: float(input_id) for input_id in range(100, 116)}
        assert [len(rows) for rows in engine.passes] == [8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2]
        assert first.ceiling_tokens == 8
        # Of another target of this model, and with the budget that was measured once.
        engine.passes.clear()
        second = hold(engine, range(6), target=2)
        storage.device.submit(second, 32)
        assert done(second)
        assert [len(rows) for rows in engine.passes] == [2, 2, 2]
        assert second.ceiling_tokens is None

    def test_lowers_the_budgets_of_shards_that_are_held_already(self, storage: Storage, engine: Gated) -> None:
        engine.most = 2
        engine.gate.clear()
        blocker, first = hold(engine, [0]), hold(engine, range(10, 14), priority=Priority.INTERACTIVE)
        second = hold(engine, range(20, 24), target=2)
        for one in (blocker, first, second):
            storage.device.submit(one, 16)
        engine.gate.set()
        assert done(blocker, first, second)
        assert max(len(rows) for rows in engine.passes if rows[0] >= 20) == 2

    def test_is_no_matter_of_other_models(self, storage: Storage, engine: Gated) -> None:
        engine.most = 2
        engine.gate.clear()
        storage.device.submit(first := hold(engine, range(4)), 16)
        assert engine.entered.acquire(timeout=SECONDS)
        before, after = (hold(RowEngine(), range(4), target=target, model=7) for target in (3, 4))
        storage.device.submit(before, 16)
        engine.gate.set()
        assert done(first, before)
        storage.device.submit(after, 16)
        assert done(after)
        for other in (before, after):
            assert isinstance(other.engine, RowEngine)
            assert [len(rows) for rows in other.engine.passes] == [4]


def test_a_pass_that_does_not_end_is_seen(storage: Storage, engine: Gated) -> None:
    assert storage.device.stalled_for() == 0
    engine.gate.clear()
    storage.device.submit(one := hold(engine, [1]), 8)
    assert engine.entered.acquire(timeout=SECONDS)
    while storage.device.stalled_for() < 0.02:
        assert not one.finished.is_set()
    engine.gate.set()
    assert done(one)
    while storage.device.stalled_for():
        assert storage.device._lanes[0].is_alive()


def test_each_pass_of_a_bisection_and_of_a_call_counts_by_itself(storage: Storage) -> None:
    began: list[float] = []

    def note() -> None:
        [lane] = storage.device._passes.values()
        began.append(lane.began)

    def compute(rows: list[int]) -> Output:
        note()
        if 1 in rows:
            raise RuntimeError
        return as_vectors(rows)

    def call() -> None:
        for _ in range(3):
            storage.device.checkpoint()
            note()

    storage.device.submit(one := hold(RowEngine(compute), range(4)), 16)
    assert done(one)
    storage.device.call(call)
    assert len(set(began)) == len(began) == 5 + 3


def _raise(error: Exception) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function
