import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.engines import RowEngine, hold
from worker.device import Computed, Device
from worker.engines.base import Output
from worker.lanes import Lanes
from worker.shards import HeldShard

SECONDS = 30
CORES = 4


class Watched(RowEngine):
    """Passes wait until the test lets them go; how many stood beside one another is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()
        self.running = self.most = 0
        self.open = False
        self.full: set[int] = set()
        """Rows beside which no other fits into memory."""

    def run(self, rows: Sequence[int], params: Mapping[str, Any]) -> Output:
        with self.changed:
            self.passes.append(list(rows))
            self.running += 1
            self.most = max(self.most, self.running)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.open, SECONDS)
            self.running -= 1
        if len(rows) > 1 and self.full & set(rows):
            raise MemoryError
        return np.array(rows, np.float32)[:, None]

    def await_running(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.running == count, SECONDS)

    def let_go(self) -> None:
        with self.changed:
            self.open = True
            self.changed.notify_all()


class Lanewise:
    """A device of four cores, with what it delivered and the threads that its lanes were given."""

    def __init__(self) -> None:
        self.delivered: list[Computed] = []
        self.entered: list[tuple[str, int]] = []
        self.device = Device(self.put, cores=CORES, enter_lane=self.enter)

    def put(self, computed: list[Computed]) -> None:
        self.delivered += computed
        self.device.settle(computed)

    def enter(self, threads: int) -> None:
        self.entered.append((threading.current_thread().name, threads))


@pytest.fixture
def lanewise() -> Iterator[Lanewise]:
    found = Lanewise()
    found.device.start()
    yield found
    found.device.stop()


@pytest.fixture
def engine() -> Iterator[Watched]:
    found = Watched()
    yield found
    found.let_go()


def done(*shards: HeldShard) -> bool:
    return all(shard.finished.wait(SECONDS) for shard in shards)


def test_a_model_has_as_many_passes_as_its_plan_has_lanes(lanewise: Lanewise, engine: Watched) -> None:
    lanewise.device.submit(shard := hold(engine, range(40)), 4, lanes=3, threads=1)
    engine.await_running(3)
    engine.let_go()
    assert done(shard)
    assert engine.most == 3
    assert sorted(row for rows in engine.passes for row in rows) == list(range(40))
    assert {lane for lane, _ in lanewise.entered} == {"device", "device-1", "device-2"}


def test_lanes_give_each_row_the_output_that_it_has_alone(lanewise: Lanewise, engine: Watched) -> None:
    engine.let_go()
    shards = [hold(engine, range(start, start + 25)) for start in (0, 25, 50)]
    for shard in shards:
        lanewise.device.submit(shard, 8, lanes=4, threads=1)
    assert done(*shards)
    outputs = {
        int(input_id): float(output[0])
        for part in lanewise.delivered
        if part.outputs is not None
        for input_id, output in zip(part.input_ids, part.outputs, strict=True)
    }
    assert outputs == {number: float(number) for number in range(75)}


def test_passes_have_no_more_threads_than_there_are_cores(lanewise: Lanewise, engine: Watched) -> None:
    narrow, wide = Watched(), engine
    lanewise.device.submit(one := hold(narrow, range(4)), 4, lanes=4, threads=1)
    narrow.await_running(4)
    lanewise.device.submit(two := hold(wide, range(100, 108), target=2), 4, lanes=1, threads=4)
    lanewise.device.submit(three := hold(narrow, range(8, 12)), 4, lanes=4, threads=1)
    # The wide pass is more urgent than the narrow one behind it, and waits for all cores.
    assert not wide.passes
    assert len(narrow.passes) == 4
    narrow.let_go()
    wide.await_running(1)
    assert len(narrow.passes) == 4
    wide.let_go()
    assert done(one, two, three)
    assert wide.most == 1


def test_a_wide_pass_is_carried_by_the_first_lane(lanewise: Lanewise, engine: Watched) -> None:
    engine.let_go()
    lanewise.device.submit(one := hold(engine, range(40)), 4, lanes=4, threads=1)
    assert done(one)
    lanewise.device.submit(two := hold(engine, range(40, 80), target=2), 4, lanes=1, threads=4)
    assert done(two)
    assert {lane for lane, threads in lanewise.entered if threads == 4} == {"device"}


def test_a_call_has_the_device_to_itself(lanewise: Lanewise, engine: Watched) -> None:
    lanewise.device.submit(shard := hold(engine, range(16)), 4, lanes=2, threads=2)
    engine.await_running(2)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(lanewise.device.call, lambda: (engine.running, len(engine.passes)))
        while not lanewise.device._calls:
            assert not call.done()
        engine.let_go()
        running, passes = call.result(SECONDS)
    assert (running, passes) == (0, 2)
    assert done(shard)


def test_a_bisection_in_one_lane_leaves_the_others_alone(lanewise: Lanewise, engine: Watched) -> None:
    engine.full = {3}
    engine.let_go()
    lanewise.device.submit(shard := hold(engine, range(32)), 16, lanes=2, threads=1)
    assert done(shard)
    assert sorted(int(i) for part in lanewise.delivered for i in part.input_ids) == list(range(32))
    assert not shard.errors
    assert shard.ceiling_tokens is not None


def test_a_checkpoint_ends_the_pass_of_its_own_lane(lanewise: Lanewise) -> None:
    steps: dict[int, Callable[[], None]] = {}
    lost, kept = threading.Event(), threading.Event()

    class Stepwise(RowEngine):
        def run(self, rows: Sequence[int], params: Mapping[str, Any]) -> Output:
            mine = lost if rows[0] == 1 else kept
            steps[rows[0]] = self.checkpoint
            assert mine.wait(SECONDS)
            self.checkpoint()
            return np.array(rows, np.float32)[:, None]

    engine = Stepwise()
    engine.checkpoint = lanewise.device.checkpoint
    first, second = hold(engine, [1]), hold(engine, [2])
    lanewise.device.submit(first, 4, lanes=2, threads=1)
    lanewise.device.submit(second, 4, lanes=2, threads=1)
    while len(steps) < 2:
        assert not first.finished.is_set()
    lanewise.device.abandon(lambda shard: shard is first)
    lost.set()
    kept.set()
    assert done(first, second)
    assert first.abandoned
    assert not second.abandoned
    assert [int(i) for part in lanewise.delivered for i in part.input_ids] == [2]


def test_the_longest_pass_of_all_lanes_is_the_one_that_may_stall(lanewise: Lanewise, engine: Watched) -> None:
    lanewise.device.submit(hold(engine, [1]), 4, lanes=2, threads=1)
    engine.await_running(1)
    before = lanewise.device.stalled_for()
    quick = Watched()
    quick.let_go()
    lanewise.device.submit(shard := hold(quick, [2], target=2), 4, lanes=2, threads=1)
    assert done(shard)
    assert lanewise.device.stalled_for() >= before > 0


def test_a_device_that_drains_lets_go_of_all_lanes(lanewise: Lanewise, engine: Watched) -> None:
    lanewise.device.submit(shard := hold(engine, range(16)), 4, lanes=2, threads=2)
    engine.await_running(2)
    lanewise.device.drain()
    assert done(shard)
    assert shard.abandoned
    engine.let_go()
    with pytest.raises(CancelledError):
        lanewise.device.call(lambda: None)
    while lanewise.device.stalled_for():
        assert lanewise.device._lanes[0].is_alive()
    assert len(engine.passes) == 2


def test_lanes_that_measure_enter_with_their_threads_and_raise_what_is_raised() -> None:
    entered: list[tuple[int, int]] = []
    barrier = threading.Barrier(2, timeout=SECONDS)

    def enter(threads: int) -> None:
        entered.append((threading.get_ident(), threads))

    with Lanes(2, 3, enter) as lanes:
        assert lanes.run(lambda item: (barrier.wait(), item)[1], [1, 2]) == [1, 2]
        with pytest.raises(ZeroDivisionError):
            lanes.run(lambda item: item / 0, [1])
    assert {threads for _, threads in entered} == {3}
    assert len({thread for thread, _ in entered}) == 2
    with Lanes(1, 4, enter) as lanes:
        assert lanes.run(lambda _: threading.get_ident(), [1]) == [threading.get_ident()]
    assert entered[-1] == (threading.get_ident(), 4)
