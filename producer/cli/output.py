"""What commands show: data on stdout, status and errors on stderr; colour on terminals alone."""

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contracts.errors import InvalidInput

BAD_LINES_SHOWN = 20
_UNBROKEN = 10_000
"""Columns of what is no terminal: a program that reads it wants each row on one line."""

err = Console(stderr=True, highlight=False, emoji=False)


def emit_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())


def emit(line: str) -> None:
    """One line of data on stdout."""
    sys.stdout.write(f"{line}\n")


def emit_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Collection[str] = (),
    drop: Sequence[str] = (),
) -> None:
    """Aligned columns on stdout; the first is never cut.

    Args:
        headers: The columns' names.
        rows: Their cells.
        right: Columns of numbers.
        drop: Columns to leave out, one after the other, while a terminal is too narrow for all.
    """
    console, rows = _out(), list(rows)
    places = list(range(len(headers)))
    table = _table(headers, rows, places, right)
    for header in drop:
        if console.measure(table, options=console.options.update(width=_UNBROKEN)).maximum <= console.width:
            break
        places.remove(headers.index(header))
        table = _table(headers, rows, places, right)
    console.print(table)


def _table(
    headers: Sequence[str], rows: Iterable[Sequence[str | Text]], places: Sequence[int], right: Collection[str]
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place in places:
        justify: Any = "right" if headers[place] in right else "left"
        table.add_column(headers[place], justify=justify, no_wrap=place == 0, overflow="fold")
    for row in rows:
        cells = [row[place] for place in places]
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    return table


def emit_pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Names and values on stdout."""
    _out().print(_pairs(rows))


def show_pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Names and values on stderr."""
    err.print(_pairs(rows))


def say(text: str) -> None:
    """One line of status on stderr."""
    err.print(Text(text), soft_wrap=True)


def warn(text: str) -> None:
    """One line on stderr about something that does not end the command."""
    err.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)


def fail(message: str) -> None:
    """One line on stderr about what ended the command.

    Of a message that quotes a log, the last line is kept, which is where a log says why.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["unknown"]
    text = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    err.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


class BadLines:
    """Lines that cannot be taken, on their way to stderr: the first in full, the rest counted."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: InvalidInput) -> None:
        """Take one in."""
        self.count += 1
        if self.count <= BAD_LINES_SHOWN:
            warn(str(error))

    def close(self) -> None:
        """Say how many there were."""
        if self.count > BAD_LINES_SHOWN:
            warn(f"… and {self.count - BAD_LINES_SHOWN:,} more")
        if self.count:
            warn(f"{self.count:,} bad {'line was' if self.count == 1 else 'lines were'} left out")


def _out() -> Console:
    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=_UNBROKEN)


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(value))
    return grid
