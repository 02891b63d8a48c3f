"""The ways in which a model may be computed on a device: how its weights are held, and in which arithmetic."""

import math
from dataclasses import dataclass

from contracts.models import ModelSpec
from contracts.names import FIDELITY, Quantization
from worker.hardware import Hardware

INTEGERS = "int8"
"""The arithmetic of LLM.int8's own kernels, which multiply integers; all others are named as torch names them."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Variant:
    """One way to compute a model."""

    quantization: Quantization
    """How the weights are held."""
    dtype: str
    """The arithmetic: `float32`, `bfloat16`, `float16`, or `int8` for LLM.int8's own kernels."""
    lanes: int = 1
    """Passes beside one another."""
    threads: int | None = None
    """Threads of a pass; None for as many as torch takes by itself."""

    def __str__(self) -> str:
        return f"{self.dtype}, {self.lanes} × {self.threads}"


def stored(model: ModelSpec) -> Variant:
    """The model in the least memory that its quantization allows, and in the least precision of the arithmetic."""
    held = model.quantization
    return plain(Quantization.smallest(model.fidelity) if held is Quantization.AUTO else held)


def plain(quantization: Quantization) -> Variant:
    """Weights held so, in the least precision of the arithmetic that this allows."""
    return Variant(quantization, _native(quantization))


def choices(model: ModelSpec, hardware: Hardware) -> list[Variant]:
    """Ways to hold and compute a model that are worth a trial on the device, the likeliest to be fast first.

    A quantization is the least precision of the arithmetic: what is faster and more precise may take its place.
    """
    if model.quantization is not Quantization.AUTO:
        return [Variant(model.quantization, dtype) for dtype in _dtypes(model.quantization, hardware)]
    found = [plain(Quantization.NONE)]
    # What bitsandbytes packs is never the fastest: it is taken where nothing else fits.
    if model.fidelity <= FIDELITY[Quantization.BF16] and hardware.has("BF16"):
        found.insert(0, plain(Quantization.BF16))
    return found


def most_bytes(model: ModelSpec, variant: Variant) -> int:
    """Bytes that the weights take at most, computed so; what is registered is an estimate of how they are held.

    Only linear layers are packed, all else is as wide as the arithmetic: how much that is, the register does not say.
    """
    registered = stored(model)
    if (variant.quantization, variant.dtype) == (registered.quantization, registered.dtype):
        return model.memory_bytes
    wide = _BYTES[variant.dtype]
    if variant.quantization is not registered.quantization or registered.dtype == INTEGERS:
        # Every weight is unpacked, from what it takes in the register.
        return math.ceil(model.memory_bytes * max(wide / registered.quantization.linear_bytes, 1))
    return model.memory_bytes * max(wide // _BYTES[registered.dtype], 1)


def _native(quantization: Quantization) -> str:
    return INTEGERS if quantization is Quantization.INT8 else quantization.least_precision


def _dtypes(quantization: Quantization, hardware: Hardware) -> tuple[str, ...]:
    if hardware.on_gpu:
        return _gpu_dtypes(quantization, bfloat16=hardware.has("BF16"))
    match quantization:
        case Quantization.NONE:
            return ("float32",)
        case Quantization.FP16:
            return ("float16", "float32") if hardware.has("FP16") else ("float32", "float16")
        case Quantization.INT8:
            return (INTEGERS,) if hardware.has("VNNI") else ("float32",)
        case _:
            return ("bfloat16", "float32") if hardware.has("BF16") else ("float32", "bfloat16")


def _gpu_dtypes(quantization: Quantization, *, bfloat16: bool) -> tuple[str, ...]:
    """GPUs below compute capability 8.0 compute bfloat16 by converting each number."""
    if bfloat16 or quantization in (Quantization.NONE, Quantization.FP16, Quantization.INT8):
        return (_native(quantization),)
    return ("float16", "float32") if quantization.four_bit else ("float32",)
