"""What a writer of any sink does, and what it is given."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias
from uuid import UUID

import pyarrow as pa

from contracts.models import ModelSpec, TargetSpec

Note: TypeAlias = Callable[[dict[str, Any], int], None]
"""Keeps how far writing is: what `write` goes on from, and the rows so far."""


class Results(Protocol):
    """The results of a job that is terminal; `producer.results.ResultReader` is one."""

    @property
    def job_id(self) -> UUID:
        """Whose they are."""

    @property
    def target(self) -> TargetSpec:
        """What they are results of."""

    def schema(self) -> pa.Schema:
        """Of the batches: position, custom_id, output, error_code, error_message, cached and truncated."""

    def batches(self, schema: pa.Schema, start: int = 0) -> Iterator[pa.RecordBatch]:
        """From that position on, without gaps."""

    def of_chats(self) -> bool:
        """Whether the inputs are chats, as far as the first one tells."""


class Writer(Protocol):
    """Writes results to one sink."""

    def check(self, model: ModelSpec, params: Mapping[str, Any], width: int | None = None) -> None:
        """See that such results can be written: before anything is scored. Nothing is left behind.

        Args:
            model: Is to compute them.
            params: Of the target.
            width: Dimensions of its vectors, or bits; None while nobody knows, and where there are none.

        Raises:
            InvalidRequest: They cannot; the message names the file, the table or the column.
            SinkUnavailable: It is full, or does not answer.
        """

    def write(self, results: Results, resume: dict[str, Any] | None, note: Note) -> int:
        """Write them all and return the number of rows that the sink then has of them.

        Args:
            results: What to write.
            resume: What `note` was given last by a writer of the same results; None to begin.
            note: Called after each part that stands; what it raises ends the writing.

        Raises:
            InvalidRequest: The sink does not take them.
            SinkUnavailable: It is full, or went away; called again with what was noted, writing goes on.
        """


_NOTE_EVERY = 100_000


def noting(batches: Iterable[pa.RecordBatch], note: Note) -> Iterator[pa.RecordBatch]:
    """The batches; how many rows went by is noted now and then, for a sink that is written anew after a cut."""
    rows, noted = 0, 0
    for batch in batches:
        yield batch
        rows += len(batch)
        if rows - noted >= _NOTE_EVERY:
            note({}, rows)
            noted = rows
    note({}, rows)
