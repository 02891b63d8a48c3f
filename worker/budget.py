"""The token budget of a model on a device, measured: how many padded tokens a forward pass should hold."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, NamedTuple

from contracts.errors import ModelLoadFailed, describe
from contracts.params import MEASURED_LENGTH
from worker.engines.base import Engine
from worker.lanes import Lanes

log = logging.getLogger(__name__)

LARGEST = 262_144
PASSES = 5
PATIENCE = 1.0
"""Seconds: a pass that takes longer is not doubled any more, and passes of one size that took longer are enough."""
FUTILE = 2
"""Sizes in a row that are not clearly faster than the best before the search ends: one may be an accident."""
OVERHEAD = 0.003
"""Seconds that a pass costs beside the model, as measured in a worker on two cores that others use as well: rows drawn,
outputs split and handed on, and the wait until both cores are the model's again."""
SLACK = 0.95
"""The smallest budget that reaches this share of the best speed is taken: what a large pass gains in these trials,
whose rows are all of one length, it loses again to padding, and small passes wait less."""


class Measured(NamedTuple):
    """The best size of a pass."""

    tokens: int
    tokens_per_second: float
    """Of all lanes together."""
    ceiling: int | None
    """Tokens that passes never hold more of, where memory was too small for more."""


def measure(
    engine: Engine,
    params: Mapping[str, Any],
    begin_pass: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    lanes: Lanes | None = None,
) -> Measured:
    """Double the tokens of a pass until it gets no faster; the best of several trials counts for each size.

    Padding and batch size trade against each other differently on every processor, so that a guess costs: on two
    cores with AVX-512 the best budget of a small encoder is about 2,000 tokens, and 32,000 lose a third. Where memory
    does not even hold the smallest pass, halves of it are tried.

    Args:
        engine: Computes rows that it makes up.
        params: Of its task.
        begin_pass: Called before each pass; what it raises ends the search.
        clock: In seconds.
        lanes: What carries the passes; the thread that asks, when not given.

    Raises:
        ModelLoadFailed: Not even the smallest pass succeeds.
    """
    attempt = partial(_attempt, engine, params, begin_pass, clock, lanes)
    # The first pass pays for what libraries put off until then.
    trial = attempt(MEASURED_LENGTH, 1)
    tokens, ceiling = engine.smallest_pass, None
    if trial.seconds is not None:
        while (trial := attempt(tokens, PASSES)).full and tokens > MEASURED_LENGTH:
            tokens = ceiling = tokens // 2
    if trial.seconds is None:
        raise ModelLoadFailed(f"its first pass failed: {trial.failure}")
    speeds = {tokens: tokens / trial.seconds}
    futile = 0
    while ceiling is None and tokens < LARGEST and trial.seconds <= PATIENCE and futile < FUTILE:
        trial = attempt(2 * tokens, PASSES)
        if trial.seconds is None:
            ceiling = tokens
            break
        tokens *= 2
        gained = tokens / trial.seconds >= max(speeds.values()) / SLACK
        speeds[tokens] = tokens / trial.seconds
        futile = 0 if gained else futile + 1
    if ceiling is not None:
        log.info("passes of more than %d tokens do not go through the model", ceiling)
    enough = SLACK * max(speeds.values())
    for chosen in sorted(speeds):
        # Whatever else ran while a size was tried made it look slow: none is passed over for one trial.
        if speeds[chosen] < enough and (trial := attempt(chosen, PASSES)).seconds is not None:
            speeds[chosen] = max(speeds[chosen], chosen / trial.seconds)
        if speeds[chosen] >= enough:
            break
    return Measured(chosen, speeds[chosen], ceiling)


def glance(
    engine: Engine,
    params: Mapping[str, Any],
    begin_pass: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """The speed in one lane, in passes of the smallest size: enough to tell one arithmetic from another.

    Raises:
        ModelLoadFailed: Not even the smallest pass succeeds.
    """
    attempt = partial(_attempt, engine, params, begin_pass, clock, None)
    trial = attempt(MEASURED_LENGTH, 1)
    if trial.seconds is not None:
        trial = attempt(engine.smallest_pass, PASSES)
    if trial.seconds is None:
        raise ModelLoadFailed(f"its first pass failed: {trial.failure}")
    return Measured(engine.smallest_pass, engine.smallest_pass / trial.seconds, None)


class _Trial(NamedTuple):
    seconds: float | None
    """A pass, in the fastest round; several lanes share the time. None where one raised."""
    failure: str = ""
    full: bool = False
    """Whether it raised because memory was full."""


def _attempt(
    engine: Engine,
    params: Mapping[str, Any],
    begin_pass: Callable[[], None],
    clock: Callable[[], float],
    lanes: Lanes | None,
    tokens: int,
    rounds: int,
) -> _Trial:
    """Rounds of passes of one size, fewer when they take long."""

    def compute(rows: Sequence[Any]) -> None:
        begin_pass()
        engine.run(rows, params)

    fastest, spent = math.inf, 0.0
    try:
        rows = engine.synthetic(MEASURED_LENGTH, max(tokens // MEASURED_LENGTH, 1))
        side_by_side = 1 if lanes is None else lanes.count
        for _ in range(rounds):
            begin = clock()
            if lanes is None:
                compute(rows)
            else:
                lanes.run(compute, [rows] * side_by_side)
            seconds = clock() - begin + OVERHEAD
            fastest, spent = min(fastest, seconds / side_by_side), spent + seconds
            if spent > PATIENCE:
                break
        return _Trial(fastest)
    except CancelledError:  # the process ends
        raise
    except Exception as error:  # whatever an engine raises
        trial = _Trial(None, describe(error), engine.ran_out_of_memory(error))
    # Not sooner: an exception that is being handled keeps the tensors of the pass alive.
    if trial.full:
        engine.free_memory()
    return trial
