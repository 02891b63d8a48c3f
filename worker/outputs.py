"""What an engine's outputs must be before they may be stored."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from contracts.canonical import canonicalize
from contracts.errors import InvalidInput, ItemFailed
from contracts.itemcodes import ItemCode
from contracts.names import Task
from worker.engines.base import Output

WIDEST = 16_000
"""Floats that a column of pgvector's `vector` and `halfvec` holds."""

_DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "ubinary": np.dtype(np.uint8)}
_NON_FINITE = "the model gave NaN or infinity for this input"
_NOT_A_NUMBER = re.compile(r"\bNaN\b|infinit", re.IGNORECASE)


class WrongCount(Exception):
    """A pass gave too many outputs or too few: which of them is whose nobody knows, and the engine is broken."""


class OutputForm:
    """The form that all outputs of one target have; the first that come say how wide its vectors are.

    Args:
        task: The target's.
        params: The target's.
        engine: The name of the one that computes it, for messages.
    """

    def __init__(self, task: Task, params: Mapping[str, Any], engine: str) -> None:
        self._engine = engine
        self._dtype = _DTYPES[params.get("precision", "float32")] if task is Task.EMBED else None
        self._width: int | None = None

    def check(self, outputs: Output, count: int) -> None:
        """Let what a pass over `count` rows gave pass as a whole.

        Raises:
            WrongCount: There are too many or too few.
            ItemFailed: `invalid_output`: they are not of this form.
        """
        if not isinstance(outputs, list if self._dtype is None else np.ndarray):
            wanted = "a list of JSON values" if self._dtype is None else f"an array of {self._dtype}"
            raise self._invalid(f"a {type(outputs).__name__}, not {wanted}")
        if len(outputs) != count:
            raise WrongCount(f"engine {self._engine!r} gave {len(outputs)} outputs for {count} inputs")
        if isinstance(outputs, np.ndarray):
            self._check_vectors(outputs)

    def _check_vectors(self, outputs: np.ndarray[Any, Any]) -> None:
        if outputs.dtype != self._dtype or outputs.ndim != 2:
            raise self._invalid(f"{outputs.ndim} axes of {outputs.dtype}, not 2 of {self._dtype}")
        width = outputs.shape[1]
        if not 0 < width <= WIDEST:
            raise self._invalid(f"vectors of {width} numbers, and 1 to {WIDEST:,} can be stored")
        if self._width is None:
            self._width = width
        if width != self._width:
            raise self._invalid(f"vectors of {width} numbers, and of {self._width} before")

    def _invalid(self, what: str) -> ItemFailed:
        return ItemFailed(ItemCode.INVALID_OUTPUT, f"engine {self._engine!r} gave {what}")


def unfit(outputs: Output) -> dict[int, ItemFailed]:
    """By index: outputs with a NaN or an infinity, or that are no JSON that Postgres can hold."""
    if isinstance(outputs, list):
        return {index: error for index, value in enumerate(outputs) if (error := _unfit_json(value)) is not None}
    if outputs.dtype == np.uint8:
        return {}
    infinite = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
    return {index: ItemFailed(ItemCode.NON_FINITE, _NON_FINITE) for index in infinite.tolist()}


def joined(outputs: list[Output]) -> Output | None:
    """Outputs of one form behind one another; None where there are none."""
    if len(outputs) <= 1:
        return outputs[0] if outputs else None
    if isinstance(outputs[0], list):
        return [value for part in outputs for value in part]
    return np.concatenate(outputs)


def _unfit_json(value: Any) -> ItemFailed | None:
    try:
        canonicalize(value)
    except InvalidInput as error:
        return ItemFailed(
            ItemCode.NON_FINITE if _NOT_A_NUMBER.search(error.reason) else ItemCode.INVALID_OUTPUT, error.reason
        )
    return None
