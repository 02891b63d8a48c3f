"""Inputs that follow from a seed and a number, and what a right answer to each of them is.

The oracle knows payloads alone: neither rows nor shards nor who computed what.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.canonical import canonicalize
from contracts.fake import parse_fake
from contracts.names import Task
from worker.engines.fake import FakeEngine

DIMENSIONS = 8
KILLERS_FROM = 10**12
"""From this number on, every `KILLER_EVERY`th input kills the process that computes it."""
KILLER_EVERY = 400
POISON_PER_MILLE = 10


class Kind(StrEnum):
    """What an input does to whoever computes it; the value is the word that the text contains."""

    PLAIN = "plain"
    RAISES = "raises"
    NOT_A_NUMBER = "nanny"
    TOO_LARGE = "bloats"
    KILLS = "slays"


CODES = {
    Kind.RAISES: "engine_error",
    Kind.NOT_A_NUMBER: "non_finite",
    Kind.TOO_LARGE: "out_of_memory",
    Kind.KILLS: "worker_lost",
}
"""The error that such an input must end with."""


def source(item_delay: float, *, kills: bool) -> str:
    """The fake model that acts on those words; a pass takes `item_delay` seconds for each input."""
    words = f"fail={Kind.RAISES}&nan={Kind.NOT_A_NUMBER}&oom_on={Kind.TOO_LARGE}"
    words += f"&kill={Kind.KILLS}" if kills else ""
    return f"fake:?dimensions={DIMENSIONS}&item_delay={item_delay}&{words}"


def kind(seed: int, number: int) -> Kind:
    """What the input of a number is."""
    if number >= KILLERS_FROM:
        return Kind.KILLS if number % KILLER_EVERY == KILLER_EVERY // 2 else Kind.PLAIN
    draw = int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=4).digest(), "big") % 1000
    if draw >= POISON_PER_MILLE:
        return Kind.PLAIN
    return (Kind.RAISES, Kind.NOT_A_NUMBER, Kind.TOO_LARGE)[draw % 3]


def text(seed: int, number: int) -> str:
    """The input of a number; lengths differ, so that shards and micro-batches are cut unevenly."""
    return f"{kind(seed, number)} input {number} of run {seed} ".ljust(40 + number % 7 * 12, "x")


def digest(payload: str) -> bytes:
    """The SHA-256 by which the input is found."""
    return hashlib.sha256(canonicalize(payload)).digest()


@dataclass(frozen=True)
class Answer:
    """What inputs must end with: one entry an input."""

    vectors: NDArray[np.float32]
    """`[n, DIMENSIONS]`; a row counts where there is no code."""
    codes: list[str | None]


def oracle(seed: int, numbers: Sequence[int]) -> Answer:
    """The right answers, from the payloads alone."""
    engine = FakeEngine(parse_fake(f"fake:?dimensions={DIMENSIONS}"), Task.EMBED)
    params: dict[str, Any] = {"precision": "float32", "truncate": True}
    vectors = engine.run(engine.prepare([text(seed, number) for number in numbers], params).rows, params)
    assert isinstance(vectors, np.ndarray)
    return Answer(vectors, [CODES.get(kind(seed, number)) for number in numbers])
