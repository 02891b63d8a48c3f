"""A model in one GGUF file: whether it is whole, and what it takes in memory; only its header is read.

The header is walked here and not by the library's `GGUFReader`: that makes an array of each word of the vocabulary
(2 s for 49,000) and follows a damaged length until memory is full. The tables of types are the library's.

Source: the format's description, `docs/gguf.md` in ggml's repository.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

from contracts.errors import ModelRefused
from contracts.names import Quantization, Task
from storage.weights import estimated_bytes

TASKS = (Task.GENERATE, Task.SCORE)
VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Types of values, as `struct` writes them."""
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32  # where the file does not say it
_MOST_DIMENSIONS = 4
_LONGEST_TEXT = 2**24
"""Bytes. Longest are chat templates, of some thousands."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    """From where the data begins."""


class _Damaged(Exception):
    """What the header says cannot be."""


def inspect(file: Path, task: Task, quantization: Quantization) -> int:
    """Check a GGUF file, and estimate what its weights take once they are dequantized and held as asked for.

    Whether transformers can read its architecture is for the worker to say, which has it.

    Raises:
        ModelRefused: It is cut short or damaged, one part of several, has no vocabulary, or does not do the task.
    """
    if task not in TASKS:
        raise ModelRefused(
            f"{file}: a GGUF file serves {' and '.join(TASKS)}; for {task} give a folder with safetensors"
        )
    try:
        with open(file, "rb") as stream:
            facts, tensors = _header(stream, file.stat().st_size)
    except (_Damaged, UnicodeDecodeError, OverflowError) as error:
        raise ModelRefused(f"{file} is cut short or damaged ({error}): get it again") from None
    except OSError as error:
        raise ModelRefused(f"{file} cannot be read: {error.strerror}") from None
    if facts.get("split.count", 1) not in (0, 1):
        raise ModelRefused(f"{file} is one of {facts['split.count']} parts: join them with `gguf-split --merge`")
    if not isinstance(facts.get("general.architecture"), str) or "tokenizer.ggml.model" not in facts:
        raise ModelRefused(
            f"{file} names no architecture or holds no vocabulary: give the file of a whole language model"
        )
    return sum(
        estimated_bytes(prod(tensor.shape), len(tensor.shape) == 2 and _is_linear(tensor.name), quantization)
        for tensor in tensors
    )


def _is_linear(name: str) -> bool:
    """Whether it is the matrix of a layer that is quantized: not words' vectors, on neither end."""
    return name not in ("token_embd.weight", "output.weight")


def _header(stream: IO[bytes], size: int) -> tuple[dict[str, Any], list[_Tensor]]:
    """Plain values by key, and the tensors, checked against the file's size."""
    header = _Header(stream, size)
    if header.take(4) != b"GGUF":
        raise _Damaged("it does not begin with GGUF")
    version = header.number("<I")
    if version not in VERSIONS:
        raise _Damaged(f"version {version} of the format is not known")
    tensor_count, value_count = header.number("<Q"), header.number("<Q")
    facts: dict[str, Any] = {}
    for _ in range(value_count):
        key = header.text()
        facts[key] = header.value(header.number("<I"))
    tensors = [header.tensor() for _ in range(tensor_count)]
    if not tensors:
        raise _Damaged("it holds no tensor")
    alignment = facts.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"general.alignment is {alignment!r}")
    begin = _aligned(stream.tell(), alignment)
    end = 0
    for tensor in tensors:
        if tensor.offset != _aligned(end, alignment):
            raise _Damaged(f"tensor {tensor.name} does not follow the one before")
        end = tensor.offset + _stored_bytes(tensor)
    if not begin + end <= size <= begin + _aligned(end, alignment):
        raise _Damaged(f"it should have {begin + end:,} bytes and has {size:,}")
    return facts, tensors


def _stored_bytes(tensor: _Tensor) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # an eighth of a second

    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    except (ValueError, KeyError):
        raise _Damaged(f"tensor {tensor.name} is of the unknown type {tensor.kind}") from None
    if tensor.shape[0] % block:
        raise _Damaged(f"tensor {tensor.name}: {tensor.shape[0]} values a row are no whole blocks of {block}")
    return prod(tensor.shape) // block * block_bytes


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


class _Header:
    """The file's header, read front to back and never beyond its end."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._size = size

    def take(self, length: int) -> bytes:
        self._check(length)
        return self._stream.read(length)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        length = self.number("<Q")
        if length > _LONGEST_TEXT:
            raise _Damaged(f"a text in its header has {length:,} bytes")
        return self.take(length).decode()

    def value(self, kind: int) -> Any:
        """A plain value; of an array nothing, as it holds words or scores of a vocabulary."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_form(kind))
        inner, count = self.number("<I"), self.number("<Q")
        if inner == _STRING:
            for _ in range(count):
                self._skip(self.number("<Q"))
        else:
            self._skip(count * struct.calcsize(_form(inner)))
        return None

    def tensor(self) -> _Tensor:
        name = self.text()
        dimensions = self.number("<I")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise _Damaged(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))
        return _Tensor(name, shape, self.number("<I"), self.number("<Q"))

    def _skip(self, length: int) -> None:
        self._check(length)
        self._stream.seek(length, 1)

    def _check(self, length: int) -> None:
        if length > self._size - self._stream.tell():
            raise _Damaged(f"its header goes beyond its end, at byte {self._stream.tell():,} of {self._size:,}")


def _form(kind: int) -> str:
    if kind not in _SCALARS:
        raise _Damaged(f"a value is of the unknown type {kind}")
    return _SCALARS[kind]
