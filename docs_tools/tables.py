"""Markdown tables."""

from collections.abc import Iterable, Sequence


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in which no cell breaks a row: line ends and bars of the cells are taken care of."""
    lines = [headers, ["---"] * len(headers), *([cell_of(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell_of(text: str) -> str:
    """A text as the content of one cell."""
    return " ".join(text.split()).replace("|", "\\|")
