"""What is written down outside Postgres, by processes that may die at any moment.

A record reaches the file in one `write` on a descriptor opened to append: it is whole or absent, whoever is killed, and
it survives the process that wrote it. Times are seconds of the machine's monotonic clock, which all processes share.
"""

import json
import os
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Journal:
    """Lines of JSON; with `sync`, each is on the disk when `write` returns."""

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._sync = sync

    def write(self, **record: Any) -> None:
        os.write(self._file, json.dumps({"at": time.monotonic(), **record}, default=str).encode() + b"\n")
        if self._sync:
            os.fsync(self._file)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The records of a journal; none when nobody wrote it."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


class Act(IntEnum):
    """What a worker does with inputs."""

    LOOKED = 1
    """It asked the database which of a shard's inputs have a result; the rows are those that have none."""
    BEGUN = 2
    """A micro-batch is about to go through the model."""
    SETTLED = 3
    """Results are committed."""


_HEADER = struct.Struct("<BdI")


class EngineLedger:
    """What one worker process computed: an act, its time, and the 8-byte digest of each input."""

    def __init__(self, folder: Path, ordinal: int) -> None:
        self._file = os.open(folder / f"{ordinal}.engine", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, act: Act, digests: Iterable[bytes], at: float | None = None) -> None:
        body = b"".join(digests)
        os.write(self._file, _HEADER.pack(act, time.monotonic() if at is None else at, len(body) // 8) + body)


@dataclass(frozen=True)
class Computed:
    """All that the engine ledgers say; one entry for each row of each record, in the order of its process."""

    process: NDArray[np.int64]
    """Its ordinal in the run: the kernel gives numbers of processes again."""
    act: NDArray[np.uint8]
    at: NDArray[np.float64]
    digest: NDArray[np.uint64]


def read_engine(folder: Path) -> Computed:
    """The ledgers of all processes."""
    parts: list[tuple[int, int, float, NDArray[np.uint64]]] = []
    for path in sorted(folder.glob("*.engine")):
        parts += [(int(path.stem), act, at, digests) for act, at, digests in _records(path.read_bytes())]
    counts = [len(digests) for *_, digests in parts]
    return Computed(
        process=np.repeat(np.array([part[0] for part in parts], np.int64), counts),
        act=np.repeat(np.array([part[1] for part in parts], np.uint8), counts),
        at=np.repeat(np.array([part[2] for part in parts], np.float64), counts),
        digest=np.concatenate([part[3] for part in parts]) if parts else np.zeros(0, np.uint64),
    )


def _records(data: bytes) -> Iterator[tuple[int, float, NDArray[np.uint64]]]:
    place = 0
    while place + _HEADER.size <= len(data):
        act, at, count = _HEADER.unpack_from(data, place)
        place += _HEADER.size
        yield act, at, np.frombuffer(data, np.uint64, count, place)
        place += 8 * count
