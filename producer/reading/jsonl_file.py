"""JSON lines: a value on each, or an object with an id and an input."""

import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from contracts.errors import InvalidInput
from contracts.sources import Columns
from producer.reading.files import File
from producer.reading.lines import Entry, RawLine, raw_lines
from producer.reading.picking import Picked, picked_of, quoted

_LONG_NUMBER = re.compile(rb"\d{19}")


def read_jsonl(file: File, max_bytes: int, columns: Columns) -> Iterator[Entry]:
    """The lines of a JSONL file; other keys than those of the id and the input are refused unless some are named.

    Raises:
        InvalidInput: The file cannot be read to its end.
    """
    picked, strict = picked_of(columns), columns == Columns()
    for raw in raw_lines(file, max_bytes):
        where = f"{file.name}, line {raw.number}"
        if raw.problem is not None:
            yield Entry.bad(where, raw.problem)
            continue
        try:
            value = orjson.loads(raw.data)
            custom_id = value.get(picked.id) if type(value) is dict else None
            value = _input(value, picked, strict)
            if type(value) is not str and _LONG_NUMBER.search(raw.data):
                # orjson turns an integer beyond 64 bits into a float; Python's own parser keeps it, to be refused.
                value = _input(json.loads(raw.data), picked, strict)
        except InvalidInput as error:
            yield Entry.bad(where, error.reason)
        except (ValueError, RecursionError) as error:
            if not raw.data.isspace():
                yield Entry.bad(where, _not_json(raw, error))
        else:
            yield Entry.item(where, custom_id, value)


def _input(value: Any, picked: Picked, strict: bool) -> Any:
    """The input of a parsed line.

    Raises:
        InvalidInput: It has a wrong key, or one too few.
    """
    if type(value) is not dict:
        if picked.fill is not None and value is not None:
            raise InvalidInput(f"no object, whose keys {quoted(picked.inputs)} could fill the template")
        return value
    if picked.fill is None:
        (key,) = picked.inputs
        if key in value and (not strict or len(value) <= (picked.id in value) + 1):
            return value[key]
    elif all(key in value for key in picked.inputs):
        return picked.fill([value[key] for key in picked.inputs])
    raise InvalidInput(_wrong_keys(value, picked))


def _wrong_keys(value: dict[str, Any], picked: Picked) -> str:
    for key in picked.inputs:
        if key not in value:
            return f"the object has no key {key!r}, only {quoted(value)}"
    (key,) = picked.inputs
    return (
        f"the object has {quoted(value.keys() - {picked.id, key})} beside {picked.id!r} and {key!r}, which "
        f"nothing would use: remove it, put it into {key!r}, or name the keys to take"
    )


def _not_json(raw: RawLine, error: Exception) -> str:
    try:
        raw.data.decode()
    except UnicodeDecodeError as undecodable:
        return raw.not_text(undecodable)
    return f"not JSON: {error}"
