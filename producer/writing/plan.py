"""What is written to which column of a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    ARRAY,
    JSON,
    REAL,
    BigInteger,
    Column,
    Connection,
    DateTime,
    Double,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    Uuid,
    inspect,
    or_,
    text,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.types import TypeEngine

from contracts.errors import InvalidRequest
from producer.reading.lines import MAX_ID_CHARACTERS
from producer.writing.fields import ERRORS, Kind, of_output

_TAKES: Mapping[Kind, tuple[type[TypeEngine[Any]], ...]] = {
    Kind.ID: (String, Integer, Uuid),
    Kind.TEXT: (String,),
    Kind.INTEGER: (Integer, Numeric, Float),
    Kind.NUMBER: (Numeric, Float),
    Kind.JSON: (JSON, String),
    Kind.VECTOR: (VECTOR, HALFVEC, ARRAY, JSON, String),
    Kind.BITS: (postgresql.BIT, LargeBinary, JSON, String),
    Kind.TIME: (DateTime,),
}


@dataclass(frozen=True)
class Plan:
    """A table, and the field that each of its columns takes."""

    table: Table
    columns: Mapping[str, str]
    """By column."""
    new: bool
    """Whether the table is yet to be made."""

    @property
    def id_column(self) -> str:
        """Where ids are."""
        return next(column for column, field in self.columns.items() if field == "id")

    @property
    def keeps_errors(self) -> bool:
        """Whether the table says of a row that it failed."""
        return any(field in ERRORS for field in self.columns.values())


def make_plan(
    connection: Connection, name: str, mapped: Mapping[str, str], fields: Mapping[str, Kind], width: int | None
) -> Plan:
    """The plan for a table that exists, or is to be made.

    Args:
        connection: To the table's database.
        name: `name` or `schema.name`.
        mapped: Fields by column, where their names differ.
        fields: What there is to be written.
        width: Dimensions of vectors, or bits; None while nobody knows.

    Raises:
        InvalidRequest: The table cannot take it; the message names the column.
    """
    schema, _, bare = name.rpartition(".")
    if unknown := sorted(set(mapped.values()) - set(fields)):
        raise InvalidRequest(f"columns of table {name}: no field {', '.join(unknown)}; there are {', '.join(fields)}")
    columns = dict(mapped)
    columns |= {field: field for field in fields if field not in mapped.values() and field not in mapped}
    if "id" not in columns.values():
        raise InvalidRequest(f"columns of table {name}: none takes the field id; without it no row can be found again")
    try:
        table = Table(bare, MetaData(), schema=schema or None, autoload_with=connection, resolve_fks=False)
    except NoSuchTableError:
        made = [_new_column(connection, column, fields[field], width) for column, field in columns.items()]
        return Plan(Table(bare, MetaData(), *made, schema=schema or None), columns, new=True)
    if missing := [column for column in mapped if column not in table.columns]:
        raise InvalidRequest(f"table {name} has no column {', '.join(missing)}: add it, or leave it out of columns")
    plan = Plan(table, {column: field for column, field in columns.items() if column in table.columns}, new=False)
    _check(connection, name, plan, fields, width)
    return plan


def differs(plan: Plan, there: Any, given: Any) -> Any:
    """Whether a row is another than the one that is there; what is the same is not written, so it keeps `updated_at`.

    Plain `json` of Postgres cannot be compared: a table with such a column is always written. None stands for that.
    """
    compared = [name for name, field in plan.columns.items() if field not in ("id", "updated_at")]
    kinds = [plan.table.columns[name].type for name in compared]
    if any(isinstance(kind, postgresql.JSON) and not isinstance(kind, postgresql.JSONB) for kind in kinds):
        return None
    return or_(*(there[name].is_distinct_from(given[name]) for name in compared))


def id_type(dialect: Dialect) -> TypeEngine[Any]:
    """The column's type for ids, which differ as soon as one character does."""
    if dialect.name in ("postgresql", "sqlite"):
        return Text()
    # Of any other collation "A" is "a", or "a" with a blank behind it: one row would take the other's place.
    collation = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
    return mysql.VARCHAR(MAX_ID_CHARACTERS, charset="utf8mb4", collation=collation)


def _new_column(connection: Connection, name: str, kind: Kind, width: int | None) -> "Column[Any]":
    postgres = connection.dialect.name == "postgresql"
    types: dict[Kind, TypeEngine[Any]] = {
        Kind.ID: id_type(connection.dialect),
        Kind.TEXT: Text(),
        Kind.INTEGER: BigInteger(),
        Kind.NUMBER: Double(),
        Kind.JSON: postgresql.JSONB() if postgres else JSON(),
        Kind.VECTOR: _vector(connection, width) if postgres else JSON(),
        Kind.BITS: postgresql.BIT(width or 1) if postgres else LargeBinary(),
        Kind.TIME: DateTime(timezone=True),
    }
    return Column(name, types[kind], primary_key=kind is Kind.ID, autoincrement=False)


def _vector(connection: Connection, width: int | None) -> TypeEngine[Any]:
    if connection.scalar(text("SELECT to_regtype('vector')")) is None:
        return postgresql.ARRAY(REAL)
    vector: TypeEngine[Any] = VECTOR(width or None)
    return vector


def _check(connection: Connection, name: str, plan: Plan, fields: Mapping[str, Kind], width: int | None) -> None:
    """See that the columns take their fields.

    Raises:
        InvalidRequest: One does not.
    """
    names = plan.columns.values()
    if "id" not in names:
        raise InvalidRequest(f"table {name} has no column id: add one, or say in columns which one takes the field id")
    if not any(map(of_output, names)):
        wanted = ", ".join(filter(of_output, fields))
        raise InvalidRequest(f"table {name} has no column for an output: add one of {wanted}, or say it in columns")
    if not _unique(connection, plan):
        raise InvalidRequest(
            f"table {name}, column {plan.id_column}: make it the primary key or give it a unique index"
        )
    for column in plan.table.columns:
        field = plan.columns.get(column.name)
        if field is None:
            if _must_be_given(column):
                raise InvalidRequest(f"table {name}, column {column.name}: it is NOT NULL and gets no value; drop that")
            continue
        if not isinstance(column.type, _TAKES[fields[field]]) or isinstance(column.type, postgresql.ENUM):
            raise InvalidRequest(
                f"table {name}, column {column.name}: it is {_type(connection, column)} and cannot take {field}, which "
                f"is {fields[field]}"
            )
        if plan.keeps_errors and not column.nullable and (of_output(field) or field in ERRORS):
            raise InvalidRequest(
                f"table {name}, column {column.name}: it is NOT NULL, and a row has either an output or an error; "
                "drop that, or the columns of errors"
            )
        if of_output(field) and (has := _width(column)) and width and has != width:
            raise InvalidRequest(
                f"table {name}, column {column.name}: it is {_type(connection, column)}, and the model gives {width}"
            )


def _unique(connection: Connection, plan: Plan) -> bool:
    inspector = inspect(connection)
    name, schema = plan.table.name, plan.table.schema
    # Of a partial index ON CONFLICT would have to repeat the condition.
    unique: list[Any] = [
        index["column_names"]
        for index in inspector.get_indexes(name, schema)
        if index["unique"] and not any(key.endswith("_where") for key in index.get("dialect_options", {}))
    ]
    unique += [constraint["column_names"] for constraint in inspector.get_unique_constraints(name, schema)]
    return [plan.id_column] in [*unique, inspector.get_pk_constraint(name, schema)["constrained_columns"]]


def _must_be_given(column: "Column[Any]") -> bool:
    given = column.server_default is not None or column.identity is not None or column.computed is not None
    return not column.nullable and not given and column.autoincrement is not True


def _width(column: "Column[Any]") -> int | None:
    kind = column.type
    if isinstance(kind, VECTOR | HALFVEC):
        return int(kind.dim) if kind.dim else None
    if isinstance(kind, postgresql.BIT) and not kind.varying:
        return int(kind.length) if kind.length else None
    return None


def _type(connection: Connection, column: "Column[Any]") -> str:
    return column.type.compile(dialect=connection.dialect).lower()
