"""Embeddings in the precision that is asked for."""

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ItemFailed
from contracts.itemcodes import ItemCode
from worker.engines.base import Output, Prepared


def unpackable(dimensions: int, precision: str) -> ItemFailed | None:
    """Why vectors of so many floats cannot be stored in the precision, where they cannot."""
    if precision != "ubinary" or dimensions % 8 == 0:
        return None
    return ItemFailed(
        ItemCode.INVALID_PARAMS, f"precision ubinary packs eight dimensions a byte, and this model has {dimensions}"
    )


def refused(count: int, reason: ItemFailed) -> Prepared:
    """So many inputs, none of which can be computed."""
    errors = dict.fromkeys(range(count), reason)
    return Prepared([None] * count, np.zeros(count, np.int32), np.zeros(count, np.bool_), errors)


def in_precision(vectors: NDArray[np.float32], precision: str) -> Output:
    """The vectors `[n, d]` as float32, float16, or one bit a dimension: whether it is above zero.

    What is too large for float16 becomes infinite.

    Raises:
        ItemFailed: A vector to be packed holds what is no number, which its bits could not show.
    """
    match precision:
        case "float16":
            with np.errstate(over="ignore"):
                return vectors.astype(np.float16)
        case "ubinary":
            if not np.isfinite(vectors).all():
                raise ItemFailed(ItemCode.NON_FINITE, "the embedding holds what is no number")
            return np.packbits(vectors > 0, axis=-1)
        case _:
            return vectors
