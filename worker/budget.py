"""The token budget of a model on a device, measured: how many padded tokens a forward pass should hold."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from contracts.errors import ModelLoadFailed
from storage.budgets import Budget
from worker.engines.base import Engine

log = logging.getLogger(__name__)

SMALLEST, LARGEST = 512, 262_144
LENGTH = 64
"""Tokens of a row to measure with: about what a sentence or two take."""
PASSES = 5
PATIENCE = 2.0
"""Seconds: a pass that takes longer is not doubled any more."""
DECLINES = 2
"""Sizes in a row that are clearly slower than the best before the search ends: one may be an accident."""
OVERHEAD = 0.0005
"""Seconds that a pass costs outside of the model: rows drawn, outputs split and handed on."""
SLACK = 0.92
"""The smallest budget that reaches this share of the best speed is taken: small passes wait less."""


def measure(engine: Engine, params: Mapping[str, Any], clock: Callable[[], float] = time.perf_counter) -> Budget:
    """Double the tokens of a pass until it gets no faster; the best of several passes counts for each size.

    Padding and batch size trade against each other differently on every processor, so that a guess costs: on two
    cores with AVX-512 the best budget of a small encoder is about 2,000 tokens, and 32,000 lose a third.

    Raises:
        ModelLoadFailed: Not even the smallest pass succeeds.
    """
    speeds: dict[int, float] = {}
    tokens, declines = SMALLEST, 0
    while tokens <= LARGEST:
        try:
            if not speeds:  # the first pass pays for what libraries put off until then
                engine.run(engine.synthetic(LENGTH, 1), params)
            rows = engine.synthetic(LENGTH, max(tokens // LENGTH, 1))
            fastest = min(_seconds(engine, rows, params, clock) for _ in range(PASSES))
        except (RuntimeError, MemoryError) as error:  # torch's own for a full memory is a RuntimeError
            if not speeds:
                reason = (str(error).strip().splitlines() or ["no reason given"])[0]
                raise ModelLoadFailed(f"its first pass failed: {type(error).__name__}: {reason}") from error
            log.info("%d tokens do not go through the model: %s", tokens, error)
            break
        speeds[tokens] = tokens / fastest
        declines = declines + 1 if speeds[tokens] < 0.9 * max(speeds.values()) else 0
        if fastest > PATIENCE or declines == DECLINES:
            break
        tokens *= 2
    best = max(speeds.values())
    chosen = min(tokens for tokens, speed in speeds.items() if speed >= SLACK * best)
    return Budget(tokens=chosen, tokens_per_second=speeds[chosen])


def _seconds(engine: Engine, rows: list[Any], params: Mapping[str, Any], clock: Callable[[], float]) -> float:
    begin = clock()
    engine.run(rows, params)
    return clock() - begin + OVERHEAD
