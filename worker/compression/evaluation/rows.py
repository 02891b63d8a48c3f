"""Evaluation rows as they stand on disk."""

from pathlib import Path
from typing import Any, NamedTuple

import orjson

from contracts.errors import CompressionFailed


class Row(NamedTuple):
    """An input, with its label where it has one."""

    payload: Any
    label: Any = None


def read_rows(file: Path) -> list[Row]:
    """The rows of a file of JSON lines, `{"input": …}` with or without a `"label"`.

    Raises:
        CompressionFailed: A line is something else, or there is none.
    """
    rows = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                value = orjson.loads(line)
                rows.append(Row(value["input"], value.get("label")))
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
                raise CompressionFailed(f'{file.name}, line {number}: expected {{"input": …}} in JSON') from None
    if not rows:
        raise CompressionFailed(f"{file.name}: there is no row to evaluate on")
    return rows
