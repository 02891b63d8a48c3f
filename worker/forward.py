"""One forward pass, with a failure pinned on the row that caused it."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contracts.errors import ItemFailed
from worker.engines.base import Engine, Output, Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forward:
    """What a micro-batch gave: outputs for the rows that succeeded, errors for the others."""

    places: list[int]
    """Which rows succeeded, ascending; the outputs stand in this order."""
    outputs: Output | None
    """None when no row succeeded."""
    errors: dict[int, ItemFailed]
    """By place."""


def forward(engine: Engine, rows: Sequence[Row], params: Mapping[str, Any]) -> Forward:
    """Compute rows; halves of a micro-batch that raises are tried apart, until the row that raises stands alone."""
    parts: list[tuple[list[int], Output]] = []
    errors: dict[int, ItemFailed] = {}
    trials = [list(range(len(rows)))]
    while trials:
        places = trials.pop()
        try:
            outputs = engine.run([rows[place] for place in places], params)
            if len(outputs) != len(places):
                raise RuntimeError(f"the engine gave {len(outputs)} outputs for {len(places)} inputs")
        except Exception as error:  # whatever an engine raises is the row's to answer for
            if len(places) == 1:
                errors[places[0]] = _item_failed(error)
                log.info("an input fails alone: %s", errors[places[0]])
            else:
                half = len(places) // 2
                trials += [places[half:], places[:half]]
        else:
            parts.append(_without_non_finite(places, outputs, errors))
    return Forward(
        places=[place for places, _ in parts for place in places],
        outputs=_join([outputs for places, outputs in parts if places]),
        errors=errors,
    )


def _item_failed(error: Exception) -> ItemFailed:
    if isinstance(error, ItemFailed):
        return error
    reason = (str(error).strip().splitlines() or ["no message"])[0]
    return ItemFailed("engine_error", f"{type(error).__name__}: {reason}"[:2000])


def _without_non_finite(places: list[int], outputs: Output, errors: dict[int, ItemFailed]) -> tuple[list[int], Output]:
    finite: list[bool]
    if isinstance(outputs, list):
        finite = [_finite(value) for value in outputs]
    elif outputs.dtype == np.uint8:
        return places, outputs
    else:
        finite = np.logical_and.reduce(np.isfinite(outputs), axis=1).tolist()
    if all(finite):
        return places, outputs
    for place, good in zip(places, finite, strict=True):
        if not good:
            errors[place] = ItemFailed("non_finite", "the model gave NaN or infinity for this input")
    kept = [index for index, good in enumerate(finite) if good]
    remaining = [outputs[index] for index in kept] if isinstance(outputs, list) else outputs[kept]
    return [places[index] for index in kept], remaining


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return True


def _join(outputs: list[Output]) -> Output | None:
    if len(outputs) <= 1:
        return outputs[0] if outputs else None
    if isinstance(outputs[0], list):
        return [value for part in outputs for value in part]
    return np.concatenate(outputs)
