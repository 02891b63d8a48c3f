"""What commands show: data on stdout, status and errors on stderr; colour on terminals alone."""

import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
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


def emit_table(headers: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: Collection[str] = ()) -> None:
    """Aligned columns on stdout; the first is never cut."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, header in enumerate(headers):
        justify: Any = "right" if header in right else "left"
        table.add_column(header, justify=justify, no_wrap=place == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    _out().print(table)


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


def local_time(moment: datetime | None) -> str:
    """A moment in this machine's time zone."""
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def byte_size(size: int) -> str:
    """Bytes for a person, in powers of 1000."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 99.5 else f"{value:.1f} {units[0]}"


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
