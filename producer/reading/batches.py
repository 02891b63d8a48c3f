"""Rows of Arrow batches as entries; what the columns of Parquet and Arrow files may hold."""

from collections.abc import Iterator
from functools import partial
from itertools import repeat
from typing import Any

import pyarrow as pa

from contracts.errors import InvalidInput
from producer.reading.lines import MAX_ID_CHARACTERS, Entry
from producer.reading.picking import Picked

ROWS = 4_096
"""That become Python objects at once."""
_entry = partial(tuple.__new__, Entry)


def check_types(where: str, schema: Any, picked: Picked) -> None:
    """See that the columns hold what ids and inputs are made of.

    Raises:
        InvalidInput: One does not.
    """
    for name in picked.inputs:
        kind = schema.field(name).type
        if picked.fill is None and not _is_json(kind):
            raise InvalidInput(
                f"column {name!r} is of type {kind}: an input is text, a number, a boolean, or lists and "
                "structs of these; cast it",
                where,
            )
    kind = pa.string() if picked.id is None else schema.field(picked.id).type
    if not (_is_text(kind) or pa.types.is_integer(kind)):
        raise InvalidInput(f"column {picked.id!r} is of type {kind}: ids are text or integers; cast it", where)


def entries_of(batch: Any, name: str, number: int, picked: Picked) -> Iterator[Entry]:
    """The rows of a batch.

    Args:
        batch: Has the columns that were picked.
        name: Of the file.
        number: Rows of the file before it.
        picked: The columns.
    """
    where = [f"{name}, row {row}" for row in range(number + 1, number + 1 + len(batch))]
    columns = [_values(batch.column(column)) for column in picked.inputs]
    ids = [None] * len(batch) if picked.id is None else _values(batch.column(picked.id))
    if picked.fill is None and None not in columns[0] and _are_ids(ids) and not _is_broken(columns[0]):
        yield from map(_entry, zip(where, ids, columns[0], repeat(None), strict=False))
        return
    for place, custom_id, *values in zip(where, ids, *columns, strict=True):
        if UnicodeDecodeError in (type(custom_id), *map(type, values)):
            yield Entry.bad(place, "invalid UTF-8: write the column again from text")
            continue
        try:
            value = values[0] if picked.fill is None else picked.fill(values)
        except InvalidInput as error:
            yield Entry.bad(place, error.reason)
        else:
            yield Entry.item(place, custom_id, value)


def _are_ids(ids: list[Any]) -> bool:
    """Whether each is an id without a closer look: none at all, or texts that are neither empty nor long."""
    if not ids or ids[0] is None:
        return all(custom_id is None for custom_id in ids)
    if set(map(type, ids)) != {str}:
        return False
    lengths = set(map(len, ids))
    return 0 not in lengths and max(lengths) <= MAX_ID_CHARACTERS and "\0" not in "".join(ids)


def _is_broken(values: list[Any]) -> bool:
    return UnicodeDecodeError in set(map(type, values))


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
