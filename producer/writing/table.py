"""Results as rows of a table, inserted or updated by their id."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Integer
from sqlalchemy.schema import CreateTable

from contracts.errors import InvalidRequest, SinkUnavailable
from contracts.models import ModelSpec
from contracts.sinks import SqlSink
from producer.databases import explained, open_engine
from producer.urls import database_url
from producer.writing.base import Note, Results
from producer.writing.cutting import cut
from producer.writing.fields import CONSTANT, Kind, fields_of, rows_of
from producer.writing.outputs import is_vector
from producer.writing.plan import Plan, make_plan
from producer.writing.upsert import DIALECTS, upsert

_INTEGER = re.compile(r"[+-]?\d+")


class TableWriter:
    """Writes so many rows a transaction; one that was committed and not noted is written again, which changes nothing.

    A row that failed has its error in the columns of errors, and NULL for its output. In a table without such columns
    it is left as it was.
    """

    def __init__(self, sink: SqlSink) -> None:
        self._sink = sink
        self._url = database_url(sink.url, "sink")
        address = self._url.set(query={}).render_as_string()
        if self._url.get_backend_name() not in DIALECTS:
            raise InvalidRequest(f"sink {address}: rows are written to PostgreSQL, SQLite, MySQL and MariaDB")
        if self._url.get_backend_name() == "postgresql" and self._url.get_driver_name() != "psycopg":
            self._url = self._url.set(drivername="postgresql+psycopg")  # COPY goes through it
        self._where = f"table {sink.table} of {address}"

    def check(self, model: ModelSpec, params: Mapping[str, Any], width: int | None = None) -> None:
        """See that the table takes such results; what is made for that is rolled back."""
        fields = fields_of(model.task, params)
        with self._connected() as connection:
            if connection.dialect.name == "sqlite":  # the driver begins no transaction before DDL by itself
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            plan = make_plan(connection, self._sink.table, self._sink.columns, fields, width)
            if plan.new and connection.dialect.name in ("postgresql", "sqlite"):
                connection.execute(CreateTable(plan.table))
            if connection.dialect.name == "postgresql":
                staged = {field: () for field in dict.fromkeys(plan.columns.values()) if field not in CONSTANT}
                upsert(connection, plan, fields, staged, model.reference, datetime.now(UTC))
            connection.rollback()

    def write(self, results: Results, resume: dict[str, Any] | None, note: Note) -> int:
        """Write the rows that were not noted yet."""
        schema = results.schema()
        fields = fields_of(results.target.model.task, results.target.params)
        position, left = (resume or {}).get("position", 0), (resume or {}).get("left", 0)
        with self._connected() as connection:
            plan = self._made(connection, fields, schema)
            wanted = {field: fields[field] for field in plan.columns.values()}
            for part in cut(results.batches(schema, position), self._sink.rows_per_transaction):
                batches = list(part)
                rows = rows_of(batches, schema, wanted, plan.keeps_errors)
                self._check_ids(connection, plan, rows["id"])
                with connection.begin():
                    upsert(connection, plan, wanted, rows, results.target.model.reference, datetime.now(UTC))
                count = sum(map(len, batches))
                position, left = position + count, left + count - len(rows["id"])
                note({"position": position, "left": left}, position - left)
        return int(position - left)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        engine = open_engine(self._url, "sink")
        with explained(self._where, SinkUnavailable), engine.connect() as connection:
            yield connection

    def _made(self, connection: Connection, fields: Mapping[str, Kind], schema: pa.Schema) -> Plan:
        width = None
        if is_vector(schema):
            kind = schema.field("output").type
            width = kind.list_size * (8 if pa.types.is_uint8(kind.value_type) else 1)
        with connection.begin():
            plan = make_plan(connection, self._sink.table, self._sink.columns, fields, width)
            if plan.new:
                connection.execute(CreateTable(plan.table, if_not_exists=True))
        return plan

    def _check_ids(self, connection: Connection, plan: Plan, ids: Sequence[str]) -> None:
        where = f"table {self._sink.table}, column {plan.id_column}"
        if isinstance(plan.table.columns[plan.id_column].type, Integer):
            if bad := next((value for value in ids if not _INTEGER.fullmatch(value)), None):
                raise InvalidRequest(f"{where}: it holds whole numbers, and {bad!r:.80} is an id; make it text")
            ids = [str(int(value)) for value in ids]
        if len(set(ids)) < len(ids):
            seen: set[str] = set()
            twice = next(value for value in ids if value in seen or seen.add(value))  # type: ignore[func-returns-value]
            raise InvalidRequest(f"{where}: two rows have the id {twice!r:.80}; give each one of its own")
