"""An engine without a model: fast, deterministic, and able to be slow or to fail on demand."""

import ctypes
import hashlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from contracts.errors import ItemFailed, ModelLoadFailed
from contracts.fake import FakeSource, parse_fake
from contracts.itemcodes import ItemCode
from contracts.models import ModelSpec
from contracts.names import Task
from worker.engines.base import Engine, Output, Prepared
from worker.engines.vectors import in_precision, refused, unpackable

BYTES_PER_TOKEN = 4
LABELS = ("negative", "neutral", "positive")
CHUNK = 512
"""Vectors made at a time: what stays in the processor's cache is made several times as fast."""
ROW = np.dtype([("seed", np.uint32, 2), ("faults", np.uint8)])
"""One input: a digest of it, and what is to happen to it, a bit a fault. A row is the bytes of one of these."""
HEALTHY = bytes(1)
FAULTS = ("kill", "segfault", "hang", "oom_on", "fail", "nan")
"""Keys of the source whose value is looked for in inputs; the first strikes first."""
NAN = 1 << FAULTS.index("nan")


class FakeEngine(Engine):
    """Outputs that are a function of the payload and nothing else; any JSON value is a payload."""

    def __init__(self, source: FakeSource, task: Task) -> None:
        self._source = source
        self._task = task

    @classmethod
    def load(cls, model: ModelSpec, folder: Path, device: str) -> Self:
        """The model that the source describes; folder and device are not looked at."""
        if model.task not in (Task.EMBED, Task.CLASSIFY):
            raise ModelLoadFailed(f"model {model.reference}: the fake engine does not {model.task}")
        source = parse_fake(model.source)
        time.sleep(source.load_delay)
        if source.load_kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if source.unloadable:
            raise ModelLoadFailed(f"model {model.reference}: this fake model refuses to be loaded")
        return cls(source, model.task)

    @property
    def memory_bytes(self) -> int:
        """What the source says."""
        return self._source.memory

    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        """Payloads digested, their length reckoned from their bytes."""
        source = self._source
        if refusal := self._refusal(params):
            return refused(len(payloads), refusal)
        contents = [_content(payload) for payload in payloads]
        digest = hashlib.blake2b
        rows = [digest(content, digest_size=8).digest() + HEALTHY for content in contents]
        words = [(word.encode(), 1 << bit) for bit, key in enumerate(FAULTS) if (word := getattr(source, key))]
        for word, fault in words:
            for i, content in enumerate(contents):
                if word in content:
                    rows[i] = rows[i][:-1] + bytes([rows[i][-1] | fault])
        tokens = np.fromiter(map(len, contents), np.int32, len(contents)) // BYTES_PER_TOKEN + 1
        lengths = np.minimum(tokens, source.limit)
        truncated = tokens > source.limit
        errors: dict[int, ItemFailed] = {}
        if params.get("truncate") is False:
            for i in np.flatnonzero(truncated).tolist():
                errors[i] = ItemFailed(ItemCode.TOO_LONG, f"{tokens[i]} tokens, and the model takes {source.limit}")
            lengths[truncated] = 0
            truncated[:] = False
        return Prepared(rows, lengths, truncated, errors)

    def run(self, rows: Sequence[bytes], params: Mapping[str, Any]) -> Output:
        """Vectors of unit length, or labels with scores that sum up to one, after the delay that was asked for."""
        time.sleep(self._source.delay + self._source.item_delay * len(rows))
        fields = np.frombuffer(b"".join(rows), dtype=ROW)
        if self._source.oom is not None and len(rows) > self._source.oom:
            raise MemoryError(f"{len(rows)} inputs, and this fake model has memory for {self._source.oom}")
        if faults := int(np.bitwise_or.reduce(fields["faults"])):
            self._strike(faults)
        not_a_number = fields["faults"] & NAN != 0
        if self._task is Task.EMBED:
            vectors = _vectors(fields["seed"], self._source.dimensions)
            vectors[not_a_number] = np.nan
            return in_precision(vectors, params.get("precision", "float32"))
        scores = np.square(_vectors(fields["seed"], len(LABELS)).astype(np.float64))
        scores[not_a_number] = np.nan
        return [_labels(row, params.get("top_k")) for row in scores.tolist()]

    def synthetic(self, length: int, count: int) -> list[bytes]:
        """Rows of whatever length: it makes no difference here."""
        return [i.to_bytes(8, "little") + HEALTHY for i in range(count)]

    def _strike(self, faults: int) -> None:
        """Do what the faults of a pass say, the worst first."""
        match next(key for bit, key in enumerate(FAULTS) if faults >> bit & 1):
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                ctypes.string_at(0)
            case "hang":
                while True:
                    time.sleep(60)
            case "oom_on":
                raise MemoryError(f"an input contains {self._source.oom_on!r}, which does not fit into memory")
            case "fail":
                raise RuntimeError(f"an input contains {self._source.fail!r}, which this fake model fails on")

    def _refusal(self, params: Mapping[str, Any]) -> ItemFailed | None:
        if self._task is not Task.EMBED:
            return None
        return unpackable(self._source.dimensions, params.get("precision", "float32"))


def _vectors(seeds: NDArray[np.uint32], dimensions: int) -> NDArray[np.float32]:
    """One unit vector `[n, d]` a seed `[n, 2]`, of numbers that look random."""
    steps = np.arange(1, dimensions + 1, dtype=np.uint32) * np.uint32(0x9E3779B1)
    vectors = np.empty((len(seeds), dimensions), dtype=np.float32)
    for start in range(0, len(seeds), CHUNK):
        part = slice(start, start + CHUNK)
        # One half of the seed shifts the steps, the other stirs, so that distinct seeds share no vector.
        bits = steps + seeds[part, :1]
        bits ^= bits >> np.uint32(15)
        bits *= seeds[part, 1:] | np.uint32(1)
        # Scaled, because the squares of 31-bit numbers would leave the sum little room.
        vectors[part] = bits.view(np.int32)
        vectors[part] *= np.float32(2**-31)
        vectors[part] /= np.sqrt(np.einsum("nd,nd->n", vectors[part], vectors[part]))[:, None]
    return vectors


def _content(payload: Any) -> bytes:
    """The bytes that an output is made of: a text's own, or the JSON of anything else."""
    return payload.encode() if isinstance(payload, str) else orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)


def _labels(scores: list[float], top_k: int | None) -> list[dict[str, Any]]:
    """Labels with their scores, best first, at most `top_k` of them."""
    best = sorted(zip(scores, LABELS, strict=True), reverse=True)
    return [{"label": label, "score": score} for score, label in best[:top_k]]
