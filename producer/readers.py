"""Input files, line by line: `.jsonl`, `.txt`, `.csv` and `.parquet`, in memory that does not grow with the file.

A line that cannot be taken is handed over as such, with its error, so that the caller decides whether the file is
refused or the line left out; what ends the file (it is missing, or shrinks while it is read) is raised.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import orjson

from contracts.canonical import MAX_INPUT_BYTES
from contracts.errors import InvalidRequest
from producer.lines import Entry, RawLine, raw_lines
from producer.tables import quoted, read_csv, read_parquet

__all__ = ["SUFFIXES", "Entry", "read"]

SUFFIXES = (".jsonl", ".txt", ".csv", ".parquet")

_LONG_NUMBER = re.compile(rb"\d{19}")


def read(
    path: str | Path,
    *,
    id_column: str | None = None,
    input_column: str | None = None,
    max_input_bytes: int = MAX_INPUT_BYTES,
) -> Iterator[Entry]:
    """The lines of a file.

    - `.jsonl`: a bare value, or an object with the keys `input` and, where wanted, `id`, and no other. Blank lines
      are passed over.
    - `.txt`: each line is an input, an empty one too; there are no ids.
    - `.csv`: has a header; other columns are passed over, an empty id is none.
    - `.parquet`: the same; the input may be text, a number, a boolean, or lists and structs of these.

    Args:
        path: The file; its suffix says what it holds.
        id_column: The column or key of the caller's ids; `id` where there is one when not given.
        input_column: The column or key of the inputs; `input` when not given.
        max_input_bytes: What a line may take; a longer one is passed over unparsed, and handed over as bad. It goes
            with the setting of that name, which clients hold inputs to.

    Raises:
        InvalidRequest: The suffix is unknown, or columns are named for a file that has none.
        InvalidInput: The file cannot be opened or lacks a column; while reading: it ends early or is damaged.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".jsonl":
            lines = _read_jsonl(path, max_input_bytes, id_column or "id", input_column or "input")
        case ".txt" if id_column or input_column:
            raise InvalidRequest(f"{path}: a .txt file has no columns; leave out id_column and input_column")
        case ".txt":
            lines = _read_text(path, max_input_bytes)
        case ".csv":
            lines = read_csv(path, max_input_bytes, id_column, input_column or "input")
        case ".parquet":
            lines = read_parquet(path, id_column, input_column or "input")
        case _:
            raise InvalidRequest(f"{path}: the suffix says what a file holds; known are {', '.join(SUFFIXES)}")
    # The first line is drawn at once, so that a file that cannot be opened is refused here.
    return chain(list(islice(lines, 1)), lines)


def _read_text(path: Path, max_bytes: int) -> Iterator[Entry]:
    for raw in raw_lines(path, max_bytes):
        where = f"{path.name}, line {raw.number}"
        if raw.problem is not None:
            yield Entry.bad(where, raw.problem)
            continue
        try:
            yield Entry(where, None, raw.data.removesuffix(b"\n").removesuffix(b"\r").decode(), None)
        except UnicodeDecodeError as error:
            yield Entry.bad(where, raw.not_text(error))


def _read_jsonl(path: Path, max_bytes: int, id_key: str, input_key: str) -> Iterator[Entry]:
    for raw in raw_lines(path, max_bytes):
        where = f"{path.name}, line {raw.number}"
        if raw.problem is not None:
            yield Entry.bad(where, raw.problem)
            continue
        try:
            value = orjson.loads(raw.data.rstrip(b"\r\n"))
            custom_id = None
            if type(value) is dict:
                if input_key not in value or len(value) > (id_key in value) + 1:
                    yield Entry.bad(where, _wrong_keys(value, id_key, input_key))
                    continue
                custom_id, value = value.get(id_key), value[input_key]
            if type(value) is not str and _LONG_NUMBER.search(raw.data):
                # orjson turns an integer beyond 64 bits into a float; Python's own parser keeps it, to be refused.
                value = json.loads(raw.data)
                value = value[input_key] if type(value) is dict else value
        except (ValueError, RecursionError) as error:
            if not raw.data.isspace():
                yield Entry.bad(where, _not_json(raw, error))
            continue
        yield Entry.item(where, custom_id, value)


def _wrong_keys(value: dict[str, Any], id_key: str, input_key: str) -> str:
    if input_key not in value:
        return f"the object has no key {input_key!r}, only {quoted(value)}"
    return (
        f"the object has {quoted(value.keys() - {id_key, input_key})} beside {id_key!r} and {input_key!r}, which "
        f"nothing would use: remove it, or put it into {input_key!r}"
    )


def _not_json(raw: RawLine, error: Exception) -> str:
    try:
        raw.data.decode()
    except UnicodeDecodeError as undecodable:
        return raw.not_text(undecodable)
    return f"not JSON: {error}"
