"""How bulk rows enter and leave Postgres through SQLAlchemy's connection: COPY in binary form, arrays out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from sqlalchemy import Connection

HEADER = b"PGCOPY\n\xff\r\n\x00" + b"\x00" * 8
TRAILER = b"\xff\xff"
"""Source of the format: PostgreSQL's documentation of COPY, "Binary Format"."""


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def copy_rows(connection: Connection, table: str, columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> None:
    """Append rows to a table.

    Args:
        connection: In a transaction.
        table: Its name.
        columns: Their names, each with the type as which its values are sent. Binary forms are not converted: bytes
            sent as `bytea` fill a `json` column as they are.
        rows: One value a column.
    """
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with _driver(connection).cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(list(columns.values()))
        for row in rows:
            copy.write_row(row)


def copy_bytes(connection: Connection, table: str, columns: Sequence[str], rows: bytes) -> None:
    """Append rows that are already in the binary format (without its header and trailer) to a table."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with _driver(connection).cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(HEADER)
        copy.write(rows)
        copy.write(TRAILER)


def fetch_binary(connection: Connection, query: str, params: Mapping[str, Any]) -> tuple[Any, ...]:
    """The one row of a query, sent in binary form: arrays and bytes arrive without being written out as text.

    Args:
        connection: In a transaction.
        query: With `%(name)s` where a parameter stands.
        params: By name.
    """
    with _driver(connection).cursor(binary=True) as cursor:
        row: tuple[Any, ...] | None = cursor.execute(query.encode(), params).fetchone()
    assert row is not None
    return row


def bigints(values: Iterable[int]) -> str:
    """Numbers as the text of a `bigint[]`; the driver's own way with a list calls a function for each."""
    return f"{{{','.join(map(str, values))}}}"


def read_bigints(raw: bytes) -> NDArray[np.int64]:
    """Numbers that were sent as one value, `string_agg(int8send(…), ''::bytea)`."""
    return np.frombuffer(raw, ">i8").astype(np.int64)
