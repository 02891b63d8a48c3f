"""Keys and values of rows that are decoded side by side, as rows come and go."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache


class RowCache:
    """The cache of some rows, aligned at the right: columns that a row does not have are at its left.

    Args:
        pads: For each row, the columns at its left that are none of its own, `[n]`.
    """

    def __init__(self, pads: torch.Tensor) -> None:
        self.layers = DynamicCache()
        """What the model appends to: of each layer, keys and values `[n, heads, columns, size]`."""
        self.pads = pads

    @property
    def columns(self) -> int:
        """Columns that stand."""
        return int(self.layers.get_seq_length())

    def mask(self, columns: int) -> torch.Tensor | None:
        """Which of so many columns belong to the rows (1, else 0), `[n, columns]`; none where all do."""
        if not self.pads.any():
            return None
        return (torch.arange(columns, device=self.pads.device) >= self.pads[:, None]).long()

    def positions(self, start: int, stop: int) -> torch.Tensor:
        """The place of some columns in each row's own text, `[n, stop - start]`."""
        columns = torch.arange(start, stop, device=self.pads.device)
        return (columns - self.pads[:, None]).clamp(min=0)

    def keep(self, places: Sequence[int]) -> None:
        """Let go of all rows but those at these places, and of columns that none of them has."""
        index = torch.tensor(places, dtype=torch.long, device=self.pads.device)
        self.pads = self.pads[index]
        spare = int(self.pads.min()) if len(places) else 0
        self.pads -= spare
        layer: Any  # the library has other kinds, which hold no columns and are not loaded here
        for layer in self.layers.layers:
            index = index.to(layer.keys.device)  # layers may stand on several
            layer.keys = layer.keys[:, :, spare:].index_select(0, index)
            layer.values = layer.values[:, :, spare:].index_select(0, index)

    def join(self, others: "RowCache") -> None:
        """Take other rows in, behind those that are here."""
        columns = max(self.columns, others.columns)
        pads = [rows.pads + columns - rows.columns for rows in (self, others)]
        mine: Any
        theirs: Any
        for mine, theirs in zip(self.layers.layers, others.layers.layers, strict=True):
            mine.keys = torch.cat([_widened(mine.keys, columns), _widened(theirs.keys, columns)])
            mine.values = torch.cat([_widened(mine.values, columns), _widened(theirs.values, columns)])
        self.pads = torch.cat(pads)


def _widened(states: torch.Tensor, columns: int) -> torch.Tensor:
    """Keys or values with zeros at the left, which the mask leaves out."""
    return torch.nn.functional.pad(states, (0, 0, columns - states.shape[2], 0))
