"""What an engine is: a loaded model that makes inputs ready and computes micro-batches of them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ItemFailed, describe
from contracts.itemcodes import ItemCode
from contracts.models import ModelSpec

Row: TypeAlias = Any
"""One input made ready for the model; only the engine that made it looks inside."""

Output: TypeAlias = NDArray[Any] | list[Any]
"""One entry an input, in the order of the inputs, and in the form that the task has.

`embed`: an array `[n, d]` of the precision that the parameters ask for: float32, float16, or bits packed as uint8
`[n, d / 8]`; `vectors.in_precision` makes it of float32. Every other task: a list of JSON values.
"""


_MEMORY_FULL = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|CUDA error: out of memory|_STATUS_ALLOC_FAILED"
)
"""How torch and CUDA's libraries say it where no class of exception does."""


@dataclass(frozen=True)
class Prepared:
    """Inputs made ready, in the order given; those with an error have a row that is never computed."""

    rows: list[Row]
    lengths: NDArray[np.int32]
    """Tokens of each row, special tokens included: what padding is reckoned in. 0 where there is an error."""
    truncated: NDArray[np.bool_]
    """Whether the input was cut to the model's limit."""
    errors: dict[int, ItemFailed] = field(default_factory=dict)
    """By position: inputs that cannot be computed, each with its reason."""

    @classmethod
    def each(cls, payloads: Sequence[Any], make: Callable[[Any], Row]) -> Self:
        """Inputs made ready one by one, none of them cut; a row is as long as `len` says.

        Args:
            payloads: As they were submitted.
            make: Makes the row of one. An ItemFailed that it raises fails that input alone; so does a ValueError or
                TypeError, as `invalid_input`.
        """
        rows: list[Row] = []
        errors: dict[int, ItemFailed] = {}
        for place, payload in enumerate(payloads):
            try:
                rows.append(make(payload))
            except (ItemFailed, ValueError, TypeError) as error:
                rows.append(None)
                errors[place] = (
                    error if isinstance(error, ItemFailed) else ItemFailed(ItemCode.INVALID_INPUT, describe(error))
                )
        lengths = [0 if place in errors else len(row) for place, row in enumerate(rows)]
        return cls(rows, np.array(lengths, np.int32), np.zeros(len(rows), np.bool_), errors)


class Engine(ABC):
    """A loaded model.

    `prepare` may be called from several threads at once; so may `run`, where the engine says that it is `concurrent`.
    An output depends on its own input and the parameters alone, never on its neighbours in the micro-batch
    beyond the tolerance of the arithmetic.
    """

    checkpoint: Callable[[], None] = staticmethod(lambda: None)
    """To be called by `run` between the steps of a pass that has several, such as one for each generated token: it
    raises CancelledError when nobody waits for the pass any more, and tells a long pass from one that hangs. A worker
    process sets it after `load`."""

    smallest_pass: ClassVar[int] = 512
    """Padded tokens of the smallest micro-batch that is worth measuring: what takes many steps, like generating, needs
    many rows beside each other."""

    @classmethod
    @abstractmethod
    def load(cls, model: ModelSpec, folder: Path, device: str) -> Self:
        """The model, ready on the device (`cpu`, `cuda:0`).

        Raises:
            ModelLoadFailed: The library could not load it.
        """

    @property
    def concurrent(self) -> bool:
        """Whether `run` may be called from several threads at once, so that a device has several passes in lanes."""
        return False

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Bytes that the loaded weights take on the device."""

    @abstractmethod
    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        """Inputs made ready: checked, tokenized, cut to the model's limit."""

    @abstractmethod
    def run(self, rows: Sequence[Row], params: Mapping[str, Any]) -> Output:
        """One forward pass over rows that `prepare` made; outputs stand in the order of the rows.

        A CancelledError of `checkpoint` is to be let through. Whatever else it raises fails the whole pass; the caller
        tries halves until one row stands alone. An `ItemFailed` then keeps its code, a memory that was full becomes
        `out_of_memory`, any other exception `engine_error`. An output that is no number is returned as it is, for the
        caller to see; where the form of the output cannot show it, raise `non_finite`.
        """

    @abstractmethod
    def synthetic(self, length: int, count: int) -> list[Row]:
        """Rows of `length` tokens (at most the model's limit) with arbitrary content, to measure with."""

    def used_tokens(self, outputs: Output) -> int | None:
        """Tokens that went through the model for outputs that can be stored, where only these tell how many.

        None where the lengths of the rows do. Where a row's length holds room for what it may become, what it did not
        become counts as padding.
        """
        return None

    def ran_out_of_memory(self, error: Exception) -> bool:
        """Whether `run` raised because memory was full: the size of the pass is to blame then, not what is in it."""
        return (
            isinstance(error, MemoryError)
            or type(error).__name__ == "OutOfMemoryError"  # torch's, which need not be installed
            or (isinstance(error, RuntimeError) and _MEMORY_FULL.search(str(error)) is not None)
        )

    def free_memory(self) -> None:  # noqa: B027 - most engines keep nothing
        """Give back what a library keeps for later passes; called after one that ran out of memory."""
