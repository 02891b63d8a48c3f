import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contracts.errors import ModelLoadFailed, ModelTooLarge
from contracts.models import ModelSpec
from storage.plans import Plan
from tests.models import model_spec
from worker.engines.base import Engine
from worker.engines.fake import FakeEngine
from worker.residency import ModelCache

LIMIT = 100


class Loader:
    """Counts what it loads; fakes take as much memory as their source says."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __call__(self, model: ModelSpec, grow: Callable[[int], bool]) -> tuple[Engine, Plan]:
        self.loaded.append(model.id)
        return FakeEngine.load(model, Path(), "cpu"), Plan(1024, 1.0)


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def cache(loader: Loader) -> ModelCache:
    return ModelCache(LIMIT, loader)


def spec(number: int, memory: int = 40, measured: int | None = None) -> ModelSpec:
    source = f"fake:?memory={memory if measured is None else measured}"
    return model_spec(id=number, name=f"model{number}", memory_bytes=memory, source=source)


def use(cache: ModelCache, model: ModelSpec) -> None:
    resident = cache.pin(model)
    cache.load(resident)
    cache.unpin(resident)


def test_a_model_is_loaded_once(cache: ModelCache, loader: Loader) -> None:
    resident = cache.pin(spec(1))
    assert cache.pin(spec(1)) is resident
    assert cache.load(resident) is cache.load(resident)
    cache.unpin(resident)
    cache.unpin(resident)
    use(cache, spec(1))
    assert loader.loaded == [1]


def test_the_least_recently_used_leaves(cache: ModelCache, loader: Loader) -> None:
    use(cache, spec(1))
    use(cache, spec(2))
    use(cache, spec(1))
    use(cache, spec(3))
    assert sorted(cache.capacity(idle=True).loaded) == [1, 3]
    use(cache, spec(1))
    assert loader.loaded == [1, 2, 3]
    use(cache, spec(4, 100))
    assert cache.capacity(idle=True).loaded == [4]


def test_nothing_leaves_that_need_not(cache: ModelCache) -> None:
    for number, memory in ((1, 40), (2, 30), (3, 30)):
        use(cache, spec(number, memory))
    assert sorted(cache.capacity(idle=True).loaded) == [1, 2, 3]
    use(cache, spec(4, 35))
    assert sorted(cache.capacity(idle=True).loaded) == [2, 3, 4]


def test_what_is_pinned_stays(cache: ModelCache) -> None:
    pinned = cache.pin(spec(1))
    cache.load(pinned)
    use(cache, spec(2))
    use(cache, spec(3))
    assert sorted(cache.capacity(idle=True).loaded) == [1, 3]
    assert cache.capacity(idle=True).free_bytes == LIMIT - 40
    twice = cache.pin(spec(1))
    cache.unpin(pinned)
    assert cache.capacity(idle=True).free_bytes == LIMIT - 40
    cache.unpin(twice)
    assert cache.capacity(idle=True).free_bytes == LIMIT
    assert cache.capacity(idle=True).total_bytes == LIMIT


def test_a_model_has_its_turn_for_ten_times_what_loading_it_took() -> None:
    seconds, took = 1000.0, 0.2

    def load(model: ModelSpec, grow: Callable[[int], bool]) -> tuple[Engine, Plan]:
        return FakeEngine.load(model, Path(), "cpu"), Plan(1024, 1.0, load_seconds=took)

    cache = ModelCache(LIMIT, load, lambda: seconds)
    assert cache.capacity(idle=True).settled
    for number, (took, turn) in enumerate([(0.2, 10.0), (3.0, 30.0), (1000.0, 600.0)]):  # noqa: B007 - load reads it
        use(cache, spec(number))
        seconds += turn - 0.1
        assert not cache.capacity(idle=True).settled
        seconds += 0.2
        assert cache.capacity(idle=True).settled


def test_whoever_asked_hears_of_those_that_leave(loader: Loader) -> None:
    left: list[ModelSpec] = []
    cache = ModelCache(LIMIT, loader, left=left.append)
    for number in (1, 2, 3):
        use(cache, spec(number))
    assert [model.id for model in left] == [1]


def test_room_that_nobody_has_to_leave_for_is_told_apart(cache: ModelCache) -> None:
    use(cache, spec(1))
    assert (cache.capacity(idle=True).vacant_bytes, cache.capacity(idle=True).free_bytes) == (LIMIT - 40, LIMIT)
    assert cache.contents() == ([1], 40)


def test_what_a_model_takes_is_measured(cache: ModelCache) -> None:
    resident = cache.pin(spec(1, 40, measured=70))
    assert cache.capacity(idle=True).free_bytes == 60
    cache.load(resident)
    assert cache.capacity(idle=True).free_bytes == 30
    cache.unpin(resident)
    use(cache, spec(2, 40))
    assert cache.capacity(idle=True).loaded == [2]


def test_a_model_that_never_fits_says_both_sizes(cache: ModelCache, loader: Loader) -> None:
    use(cache, spec(1))
    with pytest.raises(ModelTooLarge, match=r"model2@1 needs about 123,456 bytes .* 100 here.*BATCHMILL_MODEL_MEMORY"):
        cache.pin(spec(2, 123_456))
    # Nothing had to leave for it.
    assert cache.capacity(idle=True).loaded == [1]
    use(cache, spec(3, LIMIT))
    assert loader.loaded == [1, 3]


def test_a_larger_model_that_can_be_laid_over_several_devices_has_this_one_to_itself(loader: Loader) -> None:
    cache = ModelCache(LIMIT, loader, divisible=lambda model: model.id == 2)
    use(cache, spec(1))
    large = cache.pin(spec(2, 123_456, measured=70))
    assert cache.contents() == ([2], LIMIT)
    assert cache.capacity(idle=True).free_bytes == 0
    cache.load(large)
    assert cache.contents() == ([2], 70)
    with pytest.raises(ModelTooLarge):
        cache.pin(spec(3, 123_456))


def test_those_who_ask_at_once_wait_for_one_load(loader: Loader) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(model: ModelSpec, grow: Callable[[int], bool]) -> tuple[Engine, Plan]:
        started.set()
        assert go_on.wait(10)
        return loader(model, grow)

    cache = ModelCache(LIMIT, slow)
    residents = [cache.pin(spec(1)) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        loads = [threads.submit(cache.load, resident) for resident in residents]
        assert started.wait(10)
        # Others are not held up meanwhile.
        cache.unpin(cache.pin(spec(2)))
        assert cache.capacity(idle=True).free_bytes == 60
        go_on.set()
        assert len({id(load.result(10)[0]) for load in loads}) == 1
    assert loader.loaded == [1]


def test_a_model_that_cannot_be_loaded_leaves(loader: Loader) -> None:
    broken = True

    def load(model: ModelSpec, grow: Callable[[int], bool]) -> tuple[Engine, Plan]:
        if broken:
            raise ModelLoadFailed("no weights")
        return loader(model, grow)

    cache = ModelCache(LIMIT, load)
    first, second = cache.pin(spec(1)), cache.pin(spec(1))
    for resident in (first, second):
        with pytest.raises(ModelLoadFailed):
            cache.load(resident)
        cache.unpin(resident)
    assert cache.capacity(idle=True).loaded == []
    broken = False
    use(cache, spec(1))
    assert cache.capacity(idle=True).loaded == [1]


def test_who_waits_for_a_model_that_cannot_be_loaded_does_not_try_again() -> None:
    loads, entered, go_on = [], threading.Event(), threading.Event()

    def fail(model: ModelSpec, grow: Callable[[int], bool]) -> tuple[Engine, Plan]:
        loads.append(model.id)
        entered.set()
        go_on.wait(10)
        raise ModelLoadFailed("no such layer")

    cache = ModelCache(LIMIT, fail)
    residents = [cache.pin(spec(1)) for _ in range(3)]
    with ThreadPoolExecutor(3) as slots:
        waiting = [slots.submit(cache.load, resident) for resident in residents]
        entered.wait(10)
        go_on.set()
        for one in waiting:
            with pytest.raises(ModelLoadFailed, match="no such layer"):
                one.result(10)
    for resident in residents:
        cache.unpin(resident)
    assert loads == [1]
    assert cache.pin(spec(1)) is not residents[0]  # whoever comes later tries anew


def test_a_model_that_left_is_freed_once_nobody_holds_it(cache: ModelCache) -> None:
    resident = cache.pin(spec(1))
    engine = weakref.ref(cache.load(resident)[0])
    cache.unpin(resident)
    use(cache, spec(2, LIMIT))
    assert cache.contents() == ([2], LIMIT)
    # Whoever computes with it still may; then its memory is given back at once, without the garbage collector.
    assert engine() is not None
    del resident
    assert engine() is None


def test_a_model_that_could_not_be_loaded_is_freed() -> None:
    engines: list[weakref.ref[Engine]] = []

    def load(model: ModelSpec, grow: Callable[[int], bool]) -> tuple[Engine, Plan]:
        engine = FakeEngine.load(model, Path(), "cpu")
        engines.append(weakref.ref(engine))
        raise ModelLoadFailed(f"its first pass: {engine.memory_bytes}")

    cache = ModelCache(LIMIT, load)
    resident = cache.pin(spec(1))
    with pytest.raises(ModelLoadFailed):
        cache.load(resident)
    cache.unpin(resident)
    del resident
    gc.collect()  # an exception and its frames hold each other
    assert [engine() for engine in engines] == [None]
