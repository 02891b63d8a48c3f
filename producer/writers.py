"""Results as files: `.parquet`, `.jsonl` and `.csv`; a file appears whole or not at all."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from contracts.errors import InvalidRequest

SUFFIXES = (".parquet", ".jsonl", ".csv")
JSON_KEY = b"json"
"""A field of strings with this in its metadata holds JSON."""

_ROW_GROUP_BYTES = 64 * 1024 * 1024
_PLAIN_COLUMNS = ("position", "custom_id", "error_code", "error_message", "cached", "truncated")


def check_path(path: Path) -> None:
    """See that results can be written there: before a job is computed, not after.

    Raises:
        InvalidRequest: The suffix is unknown, or the folder does not exist or cannot be written to.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidRequest(f"{path}: the suffix says how to write results; known are {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise InvalidRequest(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise InvalidRequest(f"{path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidRequest(f"{path}: this user may not write to the folder {path.parent}; choose another")


def write_results(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    """Write results to a file and return their number; a file that stood there is replaced at the end.

    The columns are position, custom_id, output, error_code, error_message, cached and truncated; `output` is a
    list of a fixed size (float32, float16 or uint8), or text, which is JSON where the field's metadata has `json`.
    A line of JSONL is `{"id", "output", "error", "cached", "truncated"}`, where the id is the caller's or else the
    position; in CSV the output is JSON.

    Raises:
        InvalidRequest: The path is not one that `check_path` takes, or the disk refuses the file.
    """
    check_path(path)
    write = {".parquet": _write_parquet, ".jsonl": write_jsonl, ".csv": _write_csv}[path.suffix.lower()]
    with _replacing(path) as stream:
        return write(batches, schema, stream)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file beside the path that takes its place when nothing was raised, and else is gone."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InvalidRequest(
            f"{path} cannot be written: {error.strerror or error}; free some space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_parquet(batches: Iterable[pa.RecordBatch], schema: pa.Schema, stream: IO[bytes]) -> int:
    rows = 0
    pending: list[pa.RecordBatch] = []
    # Dictionaries only where values repeat: to look for repetition among floats costs more than all the rest.
    options = {"compression": "zstd", "compression_level": 1, "use_dictionary": ["error_code", "error_message"]}
    with pq.ParquetWriter(stream, schema, **options) as writer:
        for batch in batches:
            rows += len(batch)
            pending.append(batch)
            if sum(held.nbytes for held in pending) >= _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(pending, schema))
                pending.clear()
        if pending:
            writer.write_table(pa.Table.from_batches(pending, schema))
    return rows


def write_jsonl(batches: Iterable[pa.RecordBatch], schema: pa.Schema, stream: IO[bytes]) -> int:
    """Write results as the lines of a `.jsonl` file and return their number."""
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    rows = 0
    for batch in batches:
        rows += len(batch)
        columns = [batch.column(name).to_pylist() for name in _PLAIN_COLUMNS]
        for output, position, custom_id, code, message, cached, truncated in zip(
            _outputs(batch, schema), *columns, strict=True
        ):
            line = {
                "id": position if custom_id is None else custom_id,
                "output": output,
                "error": None if code is None else {"code": code, "message": message},
                "cached": cached,
                "truncated": truncated,
            }
            stream.write(orjson.dumps(line, option=option))
    return rows


def _write_csv(batches: Iterable[pa.RecordBatch], schema: pa.Schema, stream: IO[bytes]) -> int:
    index = schema.get_field_index("output")
    schema_of_text = schema.set(index, pa.field("output", pa.string()))
    rows = 0
    with pyarrow.csv.CSVWriter(stream, schema_of_text) as writer:
        for batch in batches:
            rows += len(batch)
            texts = [
                None if output is None else orjson.dumps(output, option=orjson.OPT_SERIALIZE_NUMPY)
                for output in _outputs(batch, schema)
            ]
            columns = batch.columns
            columns[index] = pa.array(texts, pa.binary()).cast(pa.string())
            writer.write_batch(pa.record_batch(columns, schema=schema_of_text))
    return rows


def _outputs(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[Any]:
    """What orjson is to write for each row's output; None where there is none."""
    field = schema.field("output")
    column = batch.column("output")
    if pa.types.is_fixed_size_list(field.type):
        # `flatten` leaves out the rows without an output, so those present take one vector each.
        vectors = iter(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, field.type.list_size or 1))
        for present in column.is_valid().to_pylist():
            yield next(vectors) if present else None
    else:
        holds_json = JSON_KEY in (field.metadata or {})
        for text in column.to_pylist():
            yield orjson.Fragment(text) if holds_json and text is not None else text
