"""Upserts, each database in its own words."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import JSON, Connection, Integer, LargeBinary, Text, column, table
from sqlalchemy.dialects import mysql, sqlite

from producer.writing import postgres
from producer.writing.fields import Kind
from producer.writing.plan import Plan, differs

DIALECTS = ("postgresql", "sqlite", "mysql", "mariadb")


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
        rows: As `rows_of` gives them.
        model: For the field of that name.
        now: For `updated_at`.
    """
    if connection.dialect.name == "postgresql":
        postgres.upsert(connection, plan, fields, rows, model, now)
        return
    count = len(rows["id"])
    constants = {"model": model, "updated_at": now}
    values = [
        [constants[field]] * count
        if field in constants
        else [_value(value, fields[field], plan.table.columns[name].type) for value in rows[field]]
        for name, field in plan.columns.items()
    ]
    lines = [dict(zip(plan.columns, line, strict=True)) for line in zip(*values, strict=True)]
    if lines:
        connection.execute(statement(connection.dialect.name, plan), lines)


def statement(dialect: str, plan: Plan) -> Any:
    """The upsert of one row; JSON goes as the text that it is."""
    kinds = {name: plan.table.columns[name].type for name in plan.columns}
    light = table(
        plan.table.name,
        *(column(name, Text() if isinstance(kind, JSON) else kind) for name, kind in kinds.items()),
        schema=plan.table.schema,
    )
    others = [name for name in plan.columns if name != plan.id_column]
    if dialect == "sqlite":
        upsert = sqlite.insert(light)
        return upsert.on_conflict_do_update(
            index_elements=[plan.id_column],
            set_={name: upsert.excluded[name] for name in others},
            where=differs(plan, light.c, upsert.excluded),
        )
    insert = mysql.insert(light)
    return insert.on_duplicate_key_update({name: insert.inserted[name] for name in others})


def _value(value: Any, kind: Kind, wanted: Any) -> Any:
    if value is None:
        return None
    if kind is Kind.BITS and isinstance(wanted, LargeBinary):
        return value.tobytes()
    if kind in (Kind.VECTOR, Kind.BITS):
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    return int(value) if kind is Kind.ID and isinstance(wanted, Integer) else value
