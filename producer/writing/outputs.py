"""Outputs of a batch as JSON values."""

from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa

JSON_KEY = b"json"
"""A field of strings with this in its metadata holds JSON."""


def holds_json(schema: pa.Schema) -> bool:
    """Whether outputs are texts of JSON."""
    return JSON_KEY in (schema.field("output").metadata or {})


def is_vector(schema: pa.Schema) -> bool:
    """Whether outputs are vectors."""
    return bool(pa.types.is_fixed_size_list(schema.field("output").type))


def outputs_of(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[Any]:
    """What orjson is to write for each row's output; None where there is none."""
    json = holds_json(schema)
    for output in stored_outputs(batch, schema):
        yield orjson.Fragment(output) if json and output is not None else output


def stored_outputs(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[Any]:
    """Each row's output as it is kept: a vector (numpy), or a text; None where there is none."""
    column = batch.column("output")
    if not is_vector(schema):
        yield from column.to_pylist()
        return
    # `flatten` leaves out the rows without an output, so those present take one vector each.
    width = schema.field("output").type.list_size or 1
    vectors = iter(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width))
    for present in column.is_valid().to_pylist():
        yield next(vectors) if present else None
