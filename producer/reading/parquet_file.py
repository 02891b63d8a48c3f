"""Parquet files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from tempfile import TemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contracts.errors import InvalidInput
from contracts.sources import Columns
from producer.reading.batches import ROWS, check_types, entries_of
from producer.reading.files import DAMAGE, File
from producer.reading.lines import Entry
from producer.reading.picking import Picked, pick

_BUFFER_BYTES = 1024 * 1024


def count_parquet(file: File, columns: Columns) -> int:
    """The number of rows that a Parquet file says it has, once its columns are seen to be what is wanted.

    Raises:
        InvalidInput: The file is damaged, lacks a column, or one has a type that is no JSON.
    """
    try:
        with _opened(file) as parquet:
            _picked(file, parquet, columns)
            return int(parquet.metadata.num_rows)
    except _DAMAGE as error:
        raise _broken(file, error, 0) from None


def read_parquet(file: File, columns: Columns) -> Iterator[Entry]:
    """The rows of a Parquet file.

    Raises:
        InvalidInput: The file cannot be read or is damaged, lacks a column, or one has a type that is no JSON.
    """
    number = 0
    try:
        with _opened(file) as parquet:
            picked, total = _picked(file, parquet, columns), parquet.metadata.num_rows
            wanted = dict.fromkeys(filter(None, (picked.id, *picked.inputs)))
            for batch in parquet.iter_batches(batch_size=ROWS, columns=[*wanted]):
                yield from entries_of(batch, file.name, number, picked)
                number += len(batch)
                file.bytes_read = file.size * number // total
            file.bytes_read = file.size
    except _DAMAGE as error:
        raise _broken(file, error, number) from None


# The last of names in a damaged footer.
_DAMAGE = (pa.ArrowException, UnicodeDecodeError, *DAMAGE)


def _broken(file: File, error: Exception, number: int) -> InvalidInput:
    where = f"{file.name}, row {number + 1}" if number else file.name
    return InvalidInput(f"not a whole parquet file: {error}; write it again", where)


def _picked(file: File, parquet: Any, columns: Columns) -> Picked:
    schema = parquet.schema_arrow
    picked = pick(file.name, schema.names, columns)
    check_types(file.name, schema, picked)
    return picked


@contextmanager
def _opened(file: File) -> Iterator[Any]:
    # Without pre_buffer a row group, which may be the whole file, is read by the buffer and not at once.
    options = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False}
    file = replace(file)  # what is read at the end of a file, and of what columns, tells little of how far it is
    if file.compression is None:
        with file.stored() as stream, pq.ParquetFile(stream, **options) as parquet:
            yield parquet
        return
    # A Parquet file is read from its end: one that something packed once more has to be unpacked first.
    with TemporaryFile() as unpacked:
        with file.opened() as stream:
            shutil.copyfileobj(stream, unpacked, _BUFFER_BYTES)
        with pq.ParquetFile(unpacked, **options) as parquet:
            yield parquet
