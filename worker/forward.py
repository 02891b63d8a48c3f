"""One forward pass, with a failure pinned on the row that caused it."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contracts.canonical import canonicalize
from contracts.errors import InvalidInput, ItemFailed
from worker.engines.base import Engine, Output, Row

log = logging.getLogger(__name__)

_NON_FINITE = "the model gave NaN or infinity for this input"
_NOT_A_NUMBER = re.compile(r"\bNaN\b|infinit", re.IGNORECASE)


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
            parts.append(_keep_good(places, outputs, errors))
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


def _keep_good(places: list[int], outputs: Output, errors: dict[int, ItemFailed]) -> tuple[list[int], Output]:
    """The outputs that can be stored, with their places; the others become errors."""
    bad = _unfit(outputs)
    if not bad:
        return places, outputs
    errors.update({places[index]: error for index, error in bad.items()})
    kept = [index for index in range(len(places)) if index not in bad]
    remaining = [outputs[index] for index in kept] if isinstance(outputs, list) else outputs[kept]
    return [places[index] for index in kept], remaining


def _unfit(outputs: Output) -> dict[int, ItemFailed]:
    """By index: outputs with a NaN or an infinity, or that are no JSON that Postgres can hold."""
    if isinstance(outputs, list):
        return {index: error for index, value in enumerate(outputs) if (error := _unfit_json(value)) is not None}
    if outputs.dtype == np.uint8:
        return {}
    infinite = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
    return {index: ItemFailed("non_finite", _NON_FINITE) for index in infinite.tolist()}


def _unfit_json(value: Any) -> ItemFailed | None:
    try:
        canonicalize(value)
    except InvalidInput as error:
        return ItemFailed("non_finite" if _NOT_A_NUMBER.search(error.reason) else "invalid_output", error.reason)
    return None


def _join(outputs: list[Output]) -> Output | None:
    if len(outputs) <= 1:
        return outputs[0] if outputs else None
    if isinstance(outputs[0], list):
        return [value for part in outputs for value in part]
    return np.concatenate(outputs)
