"""Rows of token ids as one tensor."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Ids = NDArray[np.int32]


def padded(
    rows: Sequence[Ids], pad_id: int, device: torch.device, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids `[n, longest]` on the device, and which of them are real (1, else 0); no mask where all are.

    Args:
        rows: Token ids of each row, at least one.
        pad_id: What fills the places that a row leaves.
        device: Where the model is.
        left: Whether what fills stands before a row, not behind it.
    """
    real = _real(rows, left)
    ids = on_device(_filled(rows, real, pad_id), device)
    # Without a mask, attention takes its fastest kernel, and a GPU need not be asked whether all are real.
    return ids, None if real.all() else on_device(real.astype(np.int64), device)


def padded_like(rows: Sequence[Ids], device: torch.device) -> torch.Tensor:
    """Numbers that go with the tokens of the rows, such as their types, `[n, longest]`; 0 behind each row."""
    return on_device(_filled(rows, _real(rows, left=False), 0), device)


def on_device(array: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """The array as a tensor where the model is."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _real(rows: Sequence[Ids], left: bool) -> NDArray[np.bool_]:
    """Which places of `[n, longest]` belong to the rows."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    longest = int(lengths.max())
    places = np.arange(longest)
    return places >= longest - lengths[:, None] if left else places < lengths[:, None]


def _filled(rows: Sequence[Ids], real: NDArray[np.bool_], filler: int) -> NDArray[np.int64]:
    filled = np.full(real.shape, filler, np.int64)
    filled[real] = np.concatenate(rows)
    return filled
