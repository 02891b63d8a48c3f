"""What weights take when they are loaded, as far as the headers of safetensors tell; no tensor is read."""

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from contracts.errors import ModelRefused
from contracts.names import Quantization

_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_DTYPE = re.compile(r"(?P<float>BF|F|C)?(?:BOOL|[IU])?(?P<bits>\d*)(?:_\w+)?")  # F32, BF16, F8_E4M3, I64, BOOL


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: list[int]
    floating: bool
    stored_bytes: int


def loaded_bytes(path: Path, quantization: Quantization) -> int:
    """An estimate of what a file's tensors take when they are loaded.

    Raises:
        ModelRefused: The file is cut short, or its header is not one.
    """
    return sum(_loaded_bytes(tensor, quantization) for tensor in _read_header(path))


def estimated_bytes(elements: int, linear: bool, quantization: Quantization) -> int:
    """What so many floating-point weights take when they are loaded, in a linear layer or elsewhere."""
    rest = 4.0 if quantization.least_precision == "float32" else 2.0
    return int(elements * (quantization.linear_bytes if linear else rest))


def _read_header(path: Path) -> list[_Tensor]:
    """The tensors of a safetensors file, checked against its size.

    Source: the format's description in the safetensors repository.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ModelRefused(f"{path} is cut short or no safetensors ({size:,} bytes): get it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            tensors = [_tensor(name, entry) for name, entry in header.items()]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise ModelRefused(f"{path} has no valid safetensors header ({error!r}): get it again") from None
    expected = 8 + length + sum(tensor.stored_bytes for tensor in tensors)  # tensors lie without gaps
    if size != expected:
        raise ModelRefused(f"{path} should have {expected:,} bytes and has {size:,}: get it again")
    return tensors


def _tensor(name: str, entry: dict[str, Any]) -> _Tensor:
    begin, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], entry["shape"]
    kind = _DTYPE.fullmatch(dtype)
    if kind is None:
        raise ValueError(f"tensor {name}: unknown type {dtype}")
    bits = int(kind["bits"] or 8)
    if not 0 <= begin <= end or prod(shape) * bits != (end - begin) * 8:
        raise ValueError(f"tensor {name}: {dtype} {shape} does not take bytes {begin} to {end}")
    return _Tensor(name, shape, kind["float"] is not None, end - begin)


def _loaded_bytes(tensor: _Tensor, quantization: Quantization) -> int:
    if not tensor.floating:  # positions, masks, and weights that are stored quantized
        return tensor.stored_bytes
    # bitsandbytes leaves words' vectors as they are, on both ends.
    linear = len(tensor.shape) == 2 and not any(part in tensor.name for part in ("embed", "lm_head"))
    return estimated_bytes(prod(tensor.shape), linear, quantization)
