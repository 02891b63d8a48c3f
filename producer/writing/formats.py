"""Formats of a file by its suffix, compressed or not."""

import gzip
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

import pyarrow as pa

from contracts.errors import InvalidRequest
from producer.writing.csv_file import write_csv
from producer.writing.jsonl_file import write_jsonl
from producer.writing.parquet_file import write_parquet

Write: TypeAlias = Callable[[Iterable[pa.RecordBatch], pa.Schema, Any], int]

_WRITE: dict[str, Write] = {".parquet": write_parquet, ".jsonl": write_jsonl, ".csv": write_csv}
_COMPRESSED = (".jsonl", ".csv")
"""Parquet is compressed inside."""
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_GZIP_LEVEL = 6
SUFFIXES = (*_WRITE, *(f"{suffix}{how}" for suffix in _COMPRESSED for how in _COMPRESSIONS))


@dataclass(frozen=True)
class Format:
    """How a file holds results."""

    write: Write
    compression: str | None

    @contextmanager
    def compressed(self, stream: IO[bytes]) -> Iterator[Any]:
        """A stream whose bytes arrive compressed in the other, which stays open."""
        match self.compression:
            case "gzip":  # no time in its header: equal results give equal bytes
                with gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=stream, mtime=0) as outer:
                    yield outer
            case "zstd":
                with pa.CompressedOutputStream(_StaysOpen(stream), "zstd") as outer:
                    yield outer
            case _:
                yield stream


def format_of(name: str) -> Format:
    """The format that a file's name says.

    Raises:
        InvalidRequest: It says none.
    """
    lowered = name.lower()
    known = next((suffix for suffix in SUFFIXES if lowered.endswith(suffix)), None)
    if known is None:
        raise InvalidRequest(f"{name}: the suffix says how to write results; known are {', '.join(SUFFIXES)}")
    inner, _, outer = known[1:].partition(".")
    return Format(_WRITE[f".{inner}"], _COMPRESSIONS[f".{outer}"] if outer else None)


class _StaysOpen:
    """A stream that Arrow may close without an effect on the one below."""

    closed = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.closed = True
