"""Upserts into Postgres: COPY into a temporary table, then one INSERT."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import orjson
from sqlalchemy import JSON, Connection, LargeBinary, String, cast, column, func, literal, select, table, text
from sqlalchemy.dialects.postgresql import JSONB, insert

from producer.writing.fields import CONSTANT, Kind
from producer.writing.plan import Plan, differs
from storage.bulk import copy_rows

_STAGING = "batchmill_rows"
_STAGED = {
    Kind.ID: ("text", "text"),
    Kind.TEXT: ("text", "text"),
    Kind.INTEGER: ("bigint", "int8"),
    Kind.NUMBER: ("double precision", "float8"),
    Kind.JSON: ("jsonb", "bytea"),
    Kind.VECTOR: ("real[]", "bytea"),
}
"""By kind: the type of the temporary table's column, and as what values are sent; as `bytea` go binary forms."""
_FLOAT4 = 700
"""The number of the type `real` in pg_type."""


def upsert(
    connection: Connection,
    plan: Plan,
    fields: Mapping[str, Kind],
    rows: Mapping[str, Sequence[Any]],
    model: str,
    now: datetime,
) -> None:
    """Insert rows, and update those whose ids are there with other values.

    Args:
        connection: In a transaction.
        plan: Of a table that exists.
        fields: Kinds of the fields that the plan names.
        rows: One list a field; without any, the statement is still one that Postgres has looked at.
        model: For the field of that name.
        now: For `updated_at`.
    """
    staged = {field: _staged(plan, field, fields[field]) for field in rows}
    columns = ", ".join(f'"{field}" {kind}' for field, (kind, _, _) in staged.items())
    # Dropped at the end, not kept: behind a pooler, the next transaction may be of another connection.
    connection.execute(text(f"CREATE TEMPORARY TABLE {_STAGING} ({columns}) ON COMMIT DROP"))
    # Sorted by id, so that two writers take their locks in one order.
    order = sorted(range(len(rows["id"])), key=rows["id"].__getitem__)
    encoded = [
        [None if (value := rows[field][place]) is None else encode(value) for place in order]
        for field, (_, _, encode) in staged.items()
    ]
    copy_rows(connection, _STAGING, {field: sent for field, (_, sent, _) in staged.items()}, zip(*encoded, strict=True))
    source = table(_STAGING, *(column(field) for field in staged))
    constants: dict[str, Any] = dict(zip(CONSTANT, (literal(model), literal(now)), strict=True))
    values: list[Any] = [
        constants[field] if field in CONSTANT else _as(source.c[field], fields[field], plan.table.columns[name].type)
        for name, field in plan.columns.items()
    ]
    statement = insert(plan.table).from_select(list(plan.columns), select(*values))
    updated = {name: statement.excluded[name] for name in plan.columns if name != plan.id_column}
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[plan.id_column], set_=updated, where=differs(plan, plan.table.columns, statement.excluded)
        )
    )
    connection.execute(text(f"DROP TABLE {_STAGING}"))


def _staged(plan: Plan, field: str, kind: Kind) -> tuple[str, str, Callable[[Any], Any]]:
    """The staging column's type, as what its values are sent, and what makes them."""
    if kind is Kind.BITS:
        types = [plan.table.columns[name].type for name, taken in plan.columns.items() if taken == field]
        if all(isinstance(taken, LargeBinary) for taken in types):
            return "bytea", "bytea", lambda bits: bits.tobytes()
        if all(isinstance(taken, JSON | String) for taken in types):
            return "jsonb", "bytea", lambda bits: _jsonb(orjson.dumps(bits, option=orjson.OPT_SERIALIZE_NUMPY))
        return "bit varying", "bytea", lambda bits: (len(bits) * 8).to_bytes(4) + bits.tobytes()
    encode: dict[Kind, Callable[[Any], Any]] = {Kind.VECTOR: _real_array, Kind.JSON: lambda text: _jsonb(text.encode())}
    return *_STAGED[kind], encode.get(kind, lambda value: value)


def _jsonb(document: bytes) -> bytes:
    return b"\x01" + document


def _real_array(vector: Any) -> bytes:
    """A vector as Postgres sends `real[]`: dimensions, nulls, type, length and lower bound; then each element."""
    elements = np.empty(len(vector), [("length", ">i4"), ("value", ">f4")])
    elements["length"], elements["value"] = 4, vector
    return np.array([1, 0, _FLOAT4, len(vector), 1], ">i4").tobytes() + elements.tobytes()


def _as(value: Any, kind: Kind, wanted: Any) -> Any:
    """The value as the column takes it. What Postgres would convert on its own is left to it: it names the column."""
    match kind:
        case Kind.VECTOR | Kind.BITS if isinstance(wanted, JSON | String):
            return cast(cast(func.to_jsonb(value), JSONB), wanted)
        case Kind.ID | Kind.VECTOR | Kind.BITS | Kind.JSON:
            return cast(value, wanted)
        case _:
            return value
