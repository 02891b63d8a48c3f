"""Arrow IPC: streams, and files (`.arrow`, Feather version 2), which hold one."""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from contracts.errors import InvalidInput
from contracts.sources import Columns
from producer.reading.batches import ROWS, check_types, entries_of
from producer.reading.files import DAMAGE, File
from producer.reading.lines import Entry
from producer.reading.picking import pick

_FILE = b"ARROW1\0\0"
"""What a file begins with; a stream follows, and behind it a list of its batches for those who want some of them."""


def read_arrow(file: File, columns: Columns) -> Iterator[Entry]:
    """The rows of an Arrow file or stream, from its first batch to its last; each is in memory as a whole.

    Raises:
        InvalidInput: The file cannot be read or is damaged, lacks a column, or one has a type that is no JSON.
    """
    number = 0
    try:
        with file.opened() as stream, pa.ipc.open_stream(_at_stream(stream)) as batches:
            picked = pick(file.name, batches.schema.names, columns)
            check_types(file.name, batches.schema, picked)
            for batch in batches:
                for start in range(0, len(batch), ROWS):
                    part = batch.slice(start, ROWS)
                    yield from entries_of(part, file.name, number, picked)
                    number += len(part)
        file.bytes_read = file.size  # the list of batches is left unread
    except (pa.ArrowException, UnicodeDecodeError, *DAMAGE) as error:
        where = f"{file.name}, row {number + 1}" if number else file.name
        raise InvalidInput(f"not a whole Arrow file: {error}; write it again", where) from None


def _at_stream(stream: IO[bytes]) -> IO[bytes]:
    if stream.peek(len(_FILE))[: len(_FILE)] == _FILE:  # type: ignore[attr-defined]
        stream.read(len(_FILE))
    return stream
