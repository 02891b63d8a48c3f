"""Input files with columns: CSV and parquet."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contracts.canonical import MAX_ITEM_BYTES
from contracts.errors import InvalidInput
from producer.lines import Entry, RawLine, opened, raw_lines

_ROWS = 4_096
_BUFFER_BYTES = 1024 * 1024


def read_csv(path: Path, max_bytes: int, id_column: str | None, input_column: str) -> Iterator[Entry]:
    """The rows of a CSV file, named by the lines that they begin on: a quoted field may hold newlines.

    Raises:
        InvalidInput: The file cannot be read, or its header lacks a column.
    """
    # The limit is one of the whole process; nobody can want it lower than an item may be.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ITEM_BYTES))
    texts = _Texts(raw_lines(path, max_bytes))
    rows = csv.reader(texts, strict=True)
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise InvalidInput(f"the header is not CSV: {error}", f"{path.name}, line 1") from None
    if (problem := texts.take_problem()) is not None:
        raise InvalidInput(problem, f"{path.name}, line 1")
    id_column, input_column = _find_columns(path.name, header, id_column, input_column)
    id_index = None if id_column is None else header.index(id_column)
    input_index = header.index(input_column)
    while True:
        where = f"{path.name}, line {rows.line_num + 1}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            texts.take_problem()
            yield Entry.bad(where, f"not CSV, read to line {rows.line_num}: {error}; is a quote not closed or doubled?")
            continue
        if (problem := texts.take_problem()) is not None:
            yield Entry.bad(where, problem)
        elif row and len(row) != len(header):
            yield Entry.bad(where, f"{len(row)} fields, and the header has {len(header)}: quote fields with commas")
        elif row:
            yield Entry.item(where, None if id_index is None else row[id_index] or None, row[input_index])


def read_parquet(path: Path, id_column: str | None, input_column: str) -> Iterator[Entry]:
    """The rows of a parquet file.

    Raises:
        InvalidInput: The file cannot be read or is damaged, lacks a column, or one has a type that is no JSON.
    """
    number = 0
    try:
        # Without pre_buffer a row group, which may be the whole file, is read by the buffer and not at once.
        options = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False}
        with opened(path) as stream, pq.ParquetFile(stream, **options) as file:
            schema = file.schema_arrow
            id_column, input_column = _find_columns(path.name, schema.names, id_column, input_column)
            _check_types(path.name, schema, id_column, input_column)
            columns = [input_column] if id_column is None else [id_column, input_column]
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                ids = [None] * len(batch) if id_column is None else _values(batch.column(id_column))
                for custom_id, value in zip(ids, _values(batch.column(input_column)), strict=True):
                    number += 1
                    where = f"{path.name}, row {number}"
                    if UnicodeDecodeError in (type(value), type(custom_id)):
                        yield Entry.bad(where, "invalid UTF-8: write the column again from text")
                    else:
                        yield Entry.item(where, custom_id, value)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of names in a damaged footer
        where = f"{path.name}, row {number + 1}" if number else path.name
        raise InvalidInput(f"not a whole parquet file: {error}; write it again", where) from None


def quoted(names: Iterable[str]) -> str:
    """Names for a message: the first ten, in order, the beginning of each."""
    names = sorted(names)
    return (", ".join(repr(name[:60]) for name in names[:10]) + (", …" if len(names) > 10 else "")) or "none"


class _Texts:
    """Decoded lines for the CSV parser, and what is wrong with those that it drew for the row at hand."""

    def __init__(self, raws: Iterator[RawLine]) -> None:
        self._raws = raws
        self._problem: str | None = None

    def take_problem(self) -> str | None:
        """What was wrong since the last call."""
        problem, self._problem = self._problem, None
        return problem

    def __iter__(self) -> Iterator[str]:
        for raw in self._raws:
            self._problem = self._problem or raw.problem
            try:
                yield raw.data.decode()
            except UnicodeDecodeError as error:
                self._problem = self._problem or raw.not_text(error)
                # The row is refused as a whole; its quotes still say where it ends.
                yield raw.data.decode(errors="replace")


class NoColumn(InvalidInput):
    """The file has no column of that name."""


def _find_columns(name: str, columns: list[str], id_column: str | None, input_column: str) -> tuple[str | None, str]:
    """The id's column, where there is one, and the input's.

    Raises:
        InvalidInput: One of them is missing, or stands twice.
    """
    if id_column is None and "id" in columns and input_column != "id":
        id_column = "id"
    for column in (id_column, input_column):
        if column is not None and columns.count(column) != 1:
            problem = "stands more than once" if column in columns else "does not exist"
            raise (InvalidInput if column in columns else NoColumn)(
                f"column {column!r} {problem}; the file has {quoted(columns)}: name others with id_column and "
                "input_column",
                name,
            )
    return id_column, input_column


def _check_types(name: str, schema: Any, id_column: str | None, input_column: str) -> None:
    kind = schema.field(input_column).type
    if not _is_json(kind):
        raise InvalidInput(
            f"column {input_column!r} is of type {kind}: an input is text, a number, a boolean, or lists and "
            "structs of these; cast it",
            name,
        )
    kind = pa.string() if id_column is None else schema.field(id_column).type
    if not (_is_text(kind) or pa.types.is_integer(kind)):
        raise InvalidInput(f"column {id_column!r} is of type {kind}: ids are text or integers; cast it", name)


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_json(kind: Any) -> bool:
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    if types.is_struct(kind):
        return all(_is_json(kind.field(index).type) for index in range(kind.num_fields))
    plain = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind)
    return bool(plain or _is_text(kind))


def _values(column: Any) -> list[Any]:
    """A column's values; a UnicodeDecodeError in place of text that is none."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error
