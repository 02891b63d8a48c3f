"""Which columns of a row are its id and its input."""

from collections.abc import Callable, Iterable, Sequence
from string import Formatter
from typing import Any, NamedTuple

import orjson

from contracts.errors import InvalidInput
from contracts.sources import Columns


class Picked(NamedTuple):
    """The columns that an entry is made of."""

    id: str | None
    """None where rows have no id."""
    inputs: tuple[str, ...]
    fill: Callable[[Sequence[Any]], Any] | None
    """Makes the input of their values, in that order; None where the input is the value of the one column."""


class NoColumn(InvalidInput):
    """There is no column of that name."""


def pick(where: str, names: list[str], columns: Columns) -> Picked:
    """The columns for the id, where there is one, and for the input.

    Args:
        where: What has the columns, for messages.
        names: Of the columns that there are.
        columns: What is asked for.

    Raises:
        InvalidInput: One of them is missing (`NoColumn`), or stands twice.
    """
    picked = picked_of(columns)
    if columns.id is None:
        picked = picked._replace(id=picked.id if picked.id in names else None)
    for column in (picked.id, *picked.inputs):
        if column is not None and names.count(column) != 1:
            problem = "stands more than once" if column in names else "does not exist"
            raise (InvalidInput if column in names else NoColumn)(
                f"column {column!r} {problem}; the file has {quoted(names)}: name others for the id and the input",
                where,
            )
    return picked


def picked_of(columns: Columns) -> Picked:
    """The columns as they are asked for, whatever there is; the id's is `id` when none is named nor it the input."""
    id_column = columns.id or ("id" if columns.input != "id" else None)
    templates = {key: _Template(text) for key, text in columns.templates().items()}
    if not templates:
        return Picked(id_column, (columns.input or "input",), None)
    inputs = tuple(dict.fromkeys(name for template in templates.values() for name in template.columns))
    places = {key: [inputs.index(name) for name in template.columns] for key, template in templates.items()}

    def fill(values: Sequence[Any]) -> Any:
        if all(value is None for value in values):
            return None
        filled = {key: template([values[place] for place in places[key]]) for key, template in templates.items()}
        return filled.get("", filled)

    return Picked(id_column, inputs, fill)


class _Template:
    """A text with the values of columns in it; one that is a column and nothing else gives its value as it is."""

    def __init__(self, text: str) -> None:
        self.columns: list[str] = []
        self._pieces: list[str] = []
        """What stands before each column, and after the last."""
        piece = ""
        for literal, name, _, _ in Formatter().parse(text):
            piece += literal
            if name is not None:
                self.columns.append(name)
                self._pieces.append(piece)
                piece = ""
        self._pieces.append(piece)
        self._alone = self._pieces == ["", ""]

    def __call__(self, values: Sequence[Any]) -> Any:
        if self._alone:
            return values[0]
        texts = (text for piece, value in zip(self._pieces, values, strict=False) for text in (piece, _text(value)))
        return "".join(texts) + self._pieces[-1]


def _text(value: Any) -> str:
    """A value inside a text: nothing for null, JSON for what is no text, number or time."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    if isinstance(value, bytes | bytearray | memoryview):
        raise InvalidInput("a template holds texts and not bytes: cast the column")
    if isinstance(value, bool | list | dict):
        return orjson.dumps(value, default=str).decode()
    return str(value)


def quoted(names: Iterable[str]) -> str:
    """Names for a message: the first ten, in order, the beginning of each."""
    names = sorted(names)
    return (", ".join(repr(name[:60]) for name in names[:10]) + (", …" if len(names) > 10 else "")) or "none"
