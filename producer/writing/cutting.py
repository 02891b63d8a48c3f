"""Batches cut into parts of equal length."""

from collections.abc import Iterator

import pyarrow as pa


def cut(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[Iterator[pa.RecordBatch]]:
    """Parts of exactly so many rows; each is to be used up before the next is asked for."""
    rest: list[pa.RecordBatch] = []

    def part(first: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        room = rows
        batch: pa.RecordBatch | None = first
        while batch is not None:
            if len(batch) > room:
                rest.append(batch.slice(room))
                batch = batch.slice(0, room)
            yield batch
            room -= len(batch)
            batch = next(batches, None) if room else None

    while (batch := rest.pop() if rest else next(batches, None)) is not None:
        yield part(batch)
