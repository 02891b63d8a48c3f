"""Results: immutable facts, written once and in bulk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import orjson
from numpy.typing import NDArray
from psycopg.errors import UniqueViolation
from sqlalchemy import Connection, text

from contracts.names import Task
from contracts.params import compresses
from storage.bulk import bigints, copy_bytes

Outputs: TypeAlias = NDArray[Any] | list[Any]
"""Vectors `[n, d]` in float32 or float16, packed bits `[n, d / 8]` in uint8, or n JSON values."""

_STAGING = text("""
    CREATE TEMPORARY TABLE IF NOT EXISTS batchmill_results (
        target_id bigint, input_id bigint, shard_id uuid, truncated boolean,
        embedding vector, embedding_half halfvec, embedding_bits bit varying, output jsonb
    ) ON COMMIT DELETE ROWS
""")
_INSERT = text("""
    INSERT INTO results
        (target_id, input_id, shard_id, truncated, embedding, embedding_half, embedding_bits, output)
    SELECT target_id, input_id, shard_id, truncated, embedding, embedding_half, embedding_bits, output
    FROM batchmill_results ORDER BY input_id
    ON CONFLICT DO NOTHING
""")
_COLUMNS = ["target_id", "input_id", "shard_id", "truncated"]


def output_column(task: Task, params: Mapping[str, Any]) -> str:
    """The column of `results` that holds what such a target gives."""
    if task is not Task.EMBED or compresses(params):
        return "output"
    return {"float32": "embedding", "float16": "embedding_half", "ubinary": "embedding_bits"}[params["precision"]]


@dataclass(frozen=True)
class NewResults:
    """Results of one target on their way into the database; all arrays have n entries."""

    target_id: int
    input_ids: NDArray[np.int64]
    shard_ids: NDArray[np.uint8]
    """`[n, 16]`: the bytes of the shard that computed each."""
    truncated: NDArray[np.bool_]
    outputs: Outputs


def insert(connection: Connection, new: NewResults) -> int:
    """Write results; those that exist already stay as they are. How many were new."""
    # Sorted by input, so that two workers that computed the same inputs take their locks in one order.
    order = np.argsort(new.input_ids, kind="stable")
    column, rows = _encode(new, order)
    try:
        with connection.begin_nested():
            copy_bytes(connection, "results", [*_COLUMNS, column], rows)
            return len(order)
    except UniqueViolation:
        # Another worker was faster with some of them. This way costs twice as much, so it comes second.
        connection.execute(_STAGING)
        copy_bytes(connection, "batchmill_results", [*_COLUMNS, column], rows)
        return connection.execute(_INSERT).rowcount


# COPY's binary rows: a count of fields, then each field's length and bytes, all big-endian.
_FIXED_FIELDS: list[Any] = [
    ("fields", ">i2"),
    ("target_length", ">i4"),
    ("target_id", ">i8"),
    ("input_length", ">i4"),
    ("input_id", ">i8"),
    ("shard_length", ">i4"),
    ("shard_id", "u1", (16,)),
    ("truncated_length", ">i4"),
    ("truncated", "u1"),
    ("output_length", ">i4"),
]


def _encode(new: NewResults, order: NDArray[np.intp]) -> tuple[str, bytes]:
    """The column that takes the outputs, and the rows in COPY's binary format."""
    outputs = new.outputs
    if isinstance(outputs, list):
        rows = _fixed(new, order, [])
        chunks = []
        for row, place in zip(rows, order.tolist(), strict=True):
            # jsonb's binary form: its version, then the text.
            document = b"\x01" + orjson.dumps(outputs[place])
            row["output_length"] = len(document)
            chunks.append(row.tobytes() + document)
        return "output", b"".join(chunks)
    width = outputs.shape[1]
    match outputs.dtype.type:
        case np.float32:  # vector: dimensions, 16 unused bits, floats
            rows = _fixed(new, order, [("dim", ">i2"), ("unused", ">i2"), ("values", ">f4", (width,))])
            rows["dim"], column = width, "embedding"
        case np.float16:
            rows = _fixed(new, order, [("dim", ">i2"), ("unused", ">i2"), ("values", ">f2", (width,))])
            rows["dim"], column = width, "embedding_half"
        case np.uint8:  # bit varying: the number of bits, then bytes
            rows = _fixed(new, order, [("bits", ">i4"), ("values", "u1", (width,))])
            rows["bits"], column = width * 8, "embedding_bits"
        case other:
            raise TypeError(f"no column takes outputs of {other}")
    rows["values"] = outputs[order]
    return column, rows.tobytes()


def _fixed(new: NewResults, order: NDArray[np.intp], output: list[Any]) -> NDArray[Any]:
    rows = np.zeros(len(order), dtype=np.dtype(_FIXED_FIELDS + output))
    rows["fields"] = 5
    rows["target_length"], rows["target_id"] = 8, new.target_id
    rows["input_length"], rows["input_id"] = 8, new.input_ids[order]
    rows["shard_length"], rows["shard_id"] = 16, new.shard_ids[order]
    rows["truncated_length"], rows["truncated"] = 1, new.truncated[order]
    rows["output_length"] = np.dtype(output).itemsize if output else 0
    return rows


def known(connection: Connection, target_id: int, input_ids: Sequence[int]) -> set[int]:
    """Those of the inputs that have a result for the target."""
    rows = connection.execute(
        text("SELECT input_id FROM results WHERE target_id = :target_id AND input_id = ANY(CAST(:ids AS bigint[]))"),
        {"target_id": target_id, "ids": bigints(input_ids)},
    )
    return set(rows.scalars())


def shard_bytes(shard_id: UUID) -> NDArray[np.uint8]:
    """A shard's id as `NewResults` holds it."""
    return np.frombuffer(shard_id.bytes, np.uint8)


def outputs(connection: Connection, target_id: int, input_ids: Sequence[int]) -> dict[int, Any]:
    """By input: the JSON output of those that have a result for the target."""
    rows = connection.execute(
        text("SELECT input_id, output FROM results WHERE target_id = :target_id AND input_id = ANY(:input_ids)"),
        {"target_id": target_id, "input_ids": list(input_ids)},
    )
    return {row.input_id: row.output for row in rows}
