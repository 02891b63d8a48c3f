"""Names that producers, workers and the database must agree on: tasks, quantizations, pools, model names."""

import re
from enum import StrEnum

from contracts.errors import InvalidRequest

POOL_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
MODEL_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
SCHEDULE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DEFAULT_POOL = "default"
TICKS = "ticks"
"""No pool may have this name: its queue would be the one of the ticks."""
COMPRESSION_POOL = "compression"
"""Its workers run the steps of recipes, and serve no model."""


class Task(StrEnum):
    """What a model computes of an input."""

    EMBED = "embed"
    CLASSIFY = "classify"
    RERANK = "rerank"
    GENERATE = "generate"
    SCORE = "score"


class Quantization(StrEnum):
    """How the weights are held in memory; all but the first three and the last are bitsandbytes' own."""

    NONE = "none"
    """As stored, computed in float32."""
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    """LLM.int8 of linear layers."""
    NF4 = "nf4"
    FP4 = "fp4"
    NF4_DOUBLE = "nf4-double"
    """nf4 whose block scales are quantized as well: about 0.4 bits a weight less."""
    FP4_DOUBLE = "fp4-double"
    AUTO = "auto"
    """Whatever is fastest on each device, within its memory and the fidelity that the model is registered with."""

    @property
    def four_bit(self) -> bool:
        """Whether linear layers hold four bits a weight."""
        return self in _FOUR_BIT

    @property
    def packed(self) -> bool:
        """Whether bitsandbytes packs the weights: then nothing trains them, or packs them once more."""
        return self not in _UNPACKED

    @property
    def least_precision(self) -> str:
        """The least precise floating-point type that activations may have, as torch spells it.

        A device that computes a more precise type faster takes that.
        """
        match self:
            case Quantization.NONE | Quantization.AUTO:
                return "float32"
            case Quantization.FP16:
                return "float16"
            case _:
                return "bfloat16"

    @property
    def linear_bytes(self) -> float:
        """Bytes a weight of a linear layer takes, block scales included (block size 64)."""
        match self:
            case Quantization.NONE | Quantization.AUTO:
                return 4.0
            case Quantization.BF16 | Quantization.FP16:
                return 2.0
            case Quantization.INT8:
                return 1.0
            case Quantization.NF4 | Quantization.FP4:
                return 0.5 + 4 / 64
            case _:
                return 0.5 + 1 / 64

    @classmethod
    def smallest(cls, fidelity: float) -> "Quantization":
        """The one that takes the least memory of those that `auto` may take for a fidelity."""
        return [quantization for quantization, stated in FIDELITY.items() if stated >= fidelity][-1]


FIDELITY = {Quantization.NONE: 1.0, Quantization.BF16: 0.999, Quantization.INT8: 0.998, Quantization.NF4: 0.97}
"""What `auto` chooses from, smaller and smaller, with the least mean cosine to float32 that is promised of each.

Of all-MiniLM-L6-v2 on docstrings 1, 0.99996, 0.9992 and 0.971 were measured: docs/models.md.
"""
_UNPACKED = frozenset({Quantization.NONE, Quantization.BF16, Quantization.FP16, Quantization.AUTO})
_FOUR_BIT = frozenset({Quantization.NF4, Quantization.FP4, Quantization.NF4_DOUBLE, Quantization.FP4_DOUBLE})


def queue_of(pool: str) -> str:
    """The broker's queue that holds the tickets of a pool."""
    return f"batchmill.{pool}"


def check_pool(pool: str) -> str:
    """The pool, when it is a name that a queue may have.

    Raises:
        InvalidRequest: It is not.
    """
    if pool == TICKS:
        raise InvalidRequest(f"pool {pool!r}: the queue of that name is for ticks; choose another")
    if pool == COMPRESSION_POOL:
        raise InvalidRequest(f"pool {pool!r}: its workers compress models and serve none; choose another")
    if not POOL_PATTERN.fullmatch(pool):
        raise InvalidRequest(
            f"pool {pool!r}: use up to 63 lower-case letters, digits, '-' and '_', the first a letter or digit"
        )
    return pool


def check_model_name(name: str) -> str:
    """The name, when a model may have it.

    Raises:
        InvalidRequest: It may not.
    """
    if not MODEL_PATTERN.fullmatch(name):
        raise InvalidRequest(
            f"model name {name!r}: use up to 127 letters, digits, '.', '-' and '_', the first a letter or digit"
        )
    return name


def check_schedule_name(name: str) -> str:
    """The name, when a schedule may have it.

    Raises:
        InvalidRequest: It may not.
    """
    if not isinstance(name, str) or not SCHEDULE_PATTERN.fullmatch(name):
        raise InvalidRequest(
            f"schedule name {name!r:.120}: use up to 100 letters, digits, '.', '-' and '_', the first a letter or digit"
        )
    return name


def split_reference(reference: str) -> tuple[str, int | None]:
    """The name and, where one is given, the version of `name` or `name@version`.

    Raises:
        InvalidRequest: The version is not a positive number, or the name is not one.
    """
    if not isinstance(reference, str):
        raise InvalidRequest(f"model {reference!r:.80}: give `name` or `name@version`")
    name, at, version = reference.partition("@")
    if at and not (version.isascii() and version.isdigit() and 0 < int(version) < 2**31):
        raise InvalidRequest(f"model {reference!r}: the version after '@' is a positive number")
    return check_model_name(name), int(version) if at else None
