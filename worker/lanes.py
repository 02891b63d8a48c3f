"""Threads that carry passes of one model beside one another, to measure with."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from worker.device import yield_to_others

T = TypeVar("T")


class Lanes:
    """A number of lanes, each a thread of its own; one lane is the thread that asks.

    Args:
        lanes: How many.
        threads: Of each pass.
        enter_lane: Called on each lane first, with the number of threads.
    """

    def __init__(self, lanes: int, threads: int, enter_lane: Callable[[int], None]) -> None:
        self.count = lanes
        self._pool = ThreadPoolExecutor(lanes, "lane", partial(_begin, enter_lane, threads)) if lanes > 1 else None
        if self._pool is None:
            enter_lane(threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def run(self, function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """What the function gives for each item, as many at once as there are lanes; or what it raises."""
        return list(map(function, items) if self._pool is None else self._pool.map(function, items))


def _begin(enter_lane: Callable[[int], None], threads: int) -> None:
    yield_to_others()
    enter_lane(threads)
