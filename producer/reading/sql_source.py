"""A query as a source: its rows, streamed by a cursor of the server inside one transaction that only reads."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import URL, Connection, CursorResult, Engine
from sqlalchemy.exc import DBAPIError, ResourceClosedError, SQLAlchemyError

from contracts.errors import DatabaseUnavailable, InvalidInput, InvalidRequest
from contracts.sources import SqlSource
from producer.databases import open_engine
from producer.reading.lines import Entry
from producer.reading.picking import pick
from producer.reading.reading import Reading
from producer.urls import database_url
from storage.database import first_line, is_away

PAGE = 2_000
"""Rows that are fetched at once."""
_NAME = "the query"
_AGAIN = ("25006", "57014")
"""SQLSTATEs that a query has whenever it is asked: it writes, or takes longer than its server allows."""


class QueryReading(Reading):
    """The rows of a query, which the server holds while they are read: they are of one moment.

    Raises:
        ConfigurationError: The driver for the URL is not installed.
        DatabaseUnavailable: The database does not answer.
        InvalidRequest: The URL is none.
        InvalidInput: The query is wrong, or lacks a column.
    """

    def __init__(self, source: SqlSource) -> None:
        url = database_url(source.url, "source")
        self._where = f"source {url.set(query={}).render_as_string(hide_password=True)}"
        engine = _engine(url, self._where)
        self._number = 0
        with ExitStack() as opened:
            opened.callback(engine.dispose)
            try:
                connection = opened.enter_context(_connected(engine))
                self._result: CursorResult[Any] = connection.exec_driver_sql(
                    source.query,
                    # Without parameters a % of the query is no place for one.
                    execution_options={"stream_results": True, "no_parameters": True},
                )
                opened.callback(self._result.close)
                names = list(self._result.keys())
            except ResourceClosedError:
                raise InvalidRequest(f"{self._where}: the query gives no rows; write a SELECT") from None
            except SQLAlchemyError as error:
                raise self._failed(error) from None
            self._picked = pick(_NAME, names, source.columns)
            self._id = None if self._picked.id is None else names.index(self._picked.id)
            self._inputs = [names.index(column) for column in self._picked.inputs]
            self._opened = opened.pop_all()

    def _entries(self) -> Iterator[Entry]:
        fill, id_place, first = self._picked.fill, self._id, self._inputs[0]
        pages = iter(self._result.partitions(PAGE))
        while True:
            try:
                page = next(pages)
            except StopIteration:
                return
            except SQLAlchemyError as error:
                raise self._failed(error) from None
            for row in page:
                self._number += 1
                where = f"{_NAME}, row {self._number}"
                try:
                    value = row[first] if fill is None else fill([row[place] for place in self._inputs])
                except InvalidInput as error:
                    yield Entry.bad(where, error.reason)
                else:
                    yield Entry.item(where, None if id_place is None else _id(row[id_place]), value)

    def _failed(self, error: SQLAlchemyError) -> DatabaseUnavailable | InvalidInput:
        """What the database says, in one line, without the address's password and without rows."""
        again = isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _AGAIN
        if isinstance(error, DBAPIError) and is_away(error) and not again:
            return DatabaseUnavailable(f"{self._where} cannot be read now: {first_line(error)}")
        reason = first_line(error) if isinstance(error, DBAPIError) else str(error).partition("\n")[0]
        return InvalidInput(
            f"the query failed: {reason}", f"{_NAME}, row {self._number + 1}" if self._number else _NAME
        )

    def check_unchanged(self) -> None:
        """What a transaction reads does not change."""

    def close(self) -> None:
        """End the transaction, and let go of the connection."""
        with suppress(SQLAlchemyError):  # of a server that went away, which ended it
            self._opened.close()


def _engine(url: URL, where: str) -> Engine:
    path = url.database if url.get_backend_name() == "sqlite" else None
    if path and path != ":memory:" and not path.startswith("file:") and not Path(path).is_file():
        # SQLite would make an empty database of it.
        raise InvalidInput("there is no such database file", where)
    return open_engine(url, "source")


def _connected(engine: Engine) -> Connection:
    """A connection that may only read, where the database can hold it to that."""
    connection = engine.connect()
    if engine.dialect.name == "postgresql":
        return connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    if engine.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA query_only = ON")
    return connection


def _id(value: Any) -> Any:
    """An id as text, of the types that keys have in databases."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return str(int(value))
    return value
