"""What a model's files hold: bytes, parameters, and how many of these are not zero."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worker.loading import gguf_file, quiet

PACKED = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format")
"""What bitsandbytes keeps beside a packed weight: of its format, and no parameters."""
STATE = ".quant_state.bitsandbytes__"
SCALES = ("_scale", "_zero_point")
"""What ONNX Runtime keeps beside a quantized weight."""


def size_bytes(folder: Path) -> int:
    """Bytes of all files in the folder, tokenizer and configuration included."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def count(folder: Path) -> tuple[int, int]:
    """Parameters, and those that are not zero, of the weights in the folder as they are stored.

    A packed weight counts as the parameters that it stands for, each by the number that it is unpacked to. Whole
    numbers, such as positions, are no parameters, unless they stand for some.
    """
    if (packed := gguf_file(folder)) is not None:
        found = _gguf(packed)
    elif graphs := sorted(folder.rglob("*.onnx")):
        found = (pair for graph in graphs for pair in _onnx(graph))
    else:
        found = (pair for file in sorted(folder.rglob("*.safetensors")) for pair in _safetensors(file))
    parameters, nonzeros = 0, 0
    for size, nonzero in found:
        parameters, nonzeros = parameters + size, nonzeros + nonzero
    return parameters, nonzeros


def _safetensors(file: Path) -> Iterator[tuple[int, int]]:
    """Of each weight its size and its non-zeros."""
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        names = sorted(stored.keys())
        for name in names:
            if name.endswith(PACKED) or STATE in name:
                continue
            beside = [other for other in names if other.startswith(f"{name}.")]
            tensor = stored.get_tensor(name)
            if any(STATE in other for other in beside):
                tensor = _unpacked(tensor, {other: stored.get_tensor(other) for other in beside}, name)
            elif not tensor.is_floating_point() and tensor.dtype != torch.int8:
                continue
            yield tensor.numel(), int(tensor.count_nonzero())


def _unpacked(tensor: Any, beside: dict[str, Any], name: str) -> Any:
    """A 4-bit weight of bitsandbytes in full."""
    with quiet():
        from bitsandbytes.functional import QuantState, dequantize_4bit

    device = tensor.device
    state = QuantState.from_dict({key.removeprefix(f"{name}."): value for key, value in beside.items()}, device)
    return dequantize_4bit(tensor, state)


def _gguf(file: Path) -> Iterator[tuple[int, int]]:
    from gguf import GGUFReader, dequantize

    for tensor in GGUFReader(file).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        yield values.size, int(np.count_nonzero(values))


def _onnx(file: Path) -> Iterator[tuple[int, int]]:
    import onnx
    from onnx.numpy_helper import to_array

    initializers = {tensor.name: tensor for tensor in onnx.load(file).graph.initializer}
    for name, tensor in initializers.items():
        if name.endswith(SCALES) or not tensor.dims:
            continue
        values = to_array(tensor)
        zero = initializers.get(f"{name.removesuffix('_quantized')}_zero_point")
        if values.dtype in (np.int8, np.uint8) and zero is not None:
            yield values.size, _nonzeros(values, to_array(zero))
        elif np.issubdtype(values.dtype, np.floating):
            yield values.size, int(np.count_nonzero(values))


def _nonzeros(values: Any, zero: Any) -> int:
    """Of whole numbers with a zero point, one for all or one for each of an axis."""
    if zero.size == 1:
        return int((values != zero.reshape(())).sum())
    axis = next(axis for axis, size in enumerate(values.shape) if size == zero.size)
    shape = [-1 if other == axis else 1 for other in range(values.ndim)]
    return int((values != zero.reshape(shape)).sum())
