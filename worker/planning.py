"""The compute plan of a model on a device, found by measuring: arithmetic, lanes and threads, tokens of a pass."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import psutil

from contracts.errors import ModelLoadFailed
from storage.plans import Plan, Rate
from worker.budget import Measured
from worker.engines.base import Engine
from worker.variants import Variant

log = logging.getLogger(__name__)

BUSY = 0.15
"""The share of a model's threads that others may take while it is measured; past it the measurement is repeated."""
TRIES = 2
WORTH = 0.97
"""The share of the speed of fewer lanes that more lanes must reach: the fastest trial of each counts, in which nothing
else took a core, and in a worker something always does. A wide pass then waits for its slowest thread, lanes do not."""
HOPELESS = 0.9
"""Lanes that do less than this share of the best end the search for more of them."""


class Bench(Protocol):
    """Loads a model in a variant, and measures it."""

    reloads: bool
    """Whether a model has to be loaded anew for another number of lanes."""

    def load(self, variant: Variant) -> Engine:
        """The model, computed so; a model that it loaded before may leave memory.

        Raises:
            ModelLoadFailed: It cannot be.
        """

    def glance(self, engine: Engine, threads: int) -> Measured:
        """The speed in one lane, in passes of the smallest size: enough to tell one arithmetic from another."""

    def measure(self, engine: Engine, lanes: int, threads: int) -> Measured:
        """The best size of a pass in so many lanes.

        Raises:
            ModelLoadFailed: Not even the smallest pass succeeds.
        """


class Found(NamedTuple):
    """A model in memory, with its plan."""

    engine: Engine
    plan: Plan


def find_plan(bench: Bench, choices: Sequence[Variant], widths: Sequence[tuple[int, int]]) -> Found:
    """The fastest of the choices, then the fastest number of lanes for it; the plan's rates say all that was tried.

    Args:
        bench: Loads and measures.
        choices: At least one; their lanes are not looked at.
        widths: Numbers of lanes to try, each with the threads of a lane; fewer lanes first.

    Raises:
        ModelLoadFailed: None of the choices can be loaded and computed.
    """
    rates: list[Rate] = []
    cores = widths[0][0] * widths[0][1]
    variant = _fastest(bench, choices, cores, rates) if len(choices) > 1 else choices[0]
    standing = replace(variant, lanes=widths[0][0], threads=widths[0][1])
    engine = bench.load(standing)
    if not engine.concurrent:
        widths = [(1, cores)]
    best: tuple[Variant, Measured] | None = None
    for lanes, threads in widths:
        tried = replace(variant, lanes=lanes, threads=threads)
        try:
            if bench.reloads and tried != standing:
                engine, standing = bench.load(tried), tried
            measured = bench.measure(engine, lanes, threads)
        except ModelLoadFailed as error:
            if best is None:
                raise
            log.info("%d lanes hold too much memory: %s", lanes, error)
            break
        rates.append(_rate(tried, measured))
        if best is None or measured.tokens_per_second > WORTH * best[1].tokens_per_second:
            best = tried, measured
        elif measured.tokens_per_second < HOPELESS * best[1].tokens_per_second:
            break
    assert best is not None
    variant, measured = best
    if bench.reloads and standing != variant:
        engine = bench.load(variant)
    plan = Plan(
        tokens=measured.tokens,
        tokens_per_second=measured.tokens_per_second,
        ceiling=measured.ceiling,
        quantization=variant.quantization,
        dtype=variant.dtype,
        lanes=variant.lanes,
        threads=variant.threads or 1,
        rates=tuple(rates),
    )
    return Found(engine, plan)


def _fastest(bench: Bench, choices: Sequence[Variant], threads: int, rates: list[Rate]) -> Variant:
    """The choice that is fastest in one lane; one that cannot be computed is none."""
    failure: ModelLoadFailed | None = None
    speeds: dict[Variant, float] = {}
    for choice in choices:
        tried = replace(choice, lanes=1, threads=threads)
        try:
            measured = bench.glance(bench.load(tried), threads)
        except ModelLoadFailed as error:
            log.info("not computed in %s: %s", tried.dtype, error)
            failure = error
            continue
        speeds[choice] = measured.tokens_per_second
        rates.append(_rate(tried, measured))
    if not speeds:
        assert failure is not None
        raise failure
    return max(speeds, key=speeds.__getitem__)


def _rate(variant: Variant, measured: Measured) -> Rate:
    return Rate(
        quantization=str(variant.quantization),
        dtype=variant.dtype,
        lanes=variant.lanes,
        threads=variant.threads or 1,
        tokens=measured.tokens,
        tokens_per_second=measured.tokens_per_second,
    )


def undisturbed(
    name: str, threads: int, measure: Callable[[], Measured], taken: Callable[[], float] | None = None
) -> Measured:
    """What a measurement gives; it is repeated where others took the processors meanwhile, and the best counts.

    Args:
        name: What is measured, for the log.
        threads: Those that it computes with.
        measure: The measurement.
        taken: Processor seconds that others have used so far; of this machine when not given.
    """
    taken = taken or _taken_by_others
    found: list[Measured] = []
    for attempt in range(1, TRIES + 1):
        before, began = taken(), time.monotonic()
        found.append(measure())
        others = (taken() - before) / max(time.monotonic() - began, 1e-9)
        share = (threads - max((os.cpu_count() or 1) - others, 0)) / threads
        if share <= BUSY:
            break
        then = "it is measured again" if attempt < TRIES else "`batchmill models measure` repeats it on a quiet machine"
        log.warning("others took %.0f %% of the processors while %s was measured: %s", 100 * share, name, then)
    return max(found, key=lambda one: one.tokens_per_second)


def _taken_by_others() -> float:
    """Processor seconds that everything but this process has used since the machine started."""
    everyone, mine = psutil.cpu_times(), psutil.Process().cpu_times()
    busy = sum(everyone) - everyone.idle - getattr(everyone, "iowait", 0.0)
    # Linux counts what guests use among what users use.
    guests = getattr(everyone, "guest", 0.0) + getattr(everyone, "guest_nice", 0.0)
    return float(busy - guests - mine.user - mine.system)
