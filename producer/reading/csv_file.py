"""CSV files with a header."""

import csv
from collections.abc import Iterator

from contracts.canonical import MAX_ITEM_BYTES
from contracts.errors import InvalidInput
from contracts.sources import Columns
from producer.reading.files import File
from producer.reading.lines import Entry, RawLine, raw_lines
from producer.reading.picking import pick


def read_csv(file: File, max_bytes: int, columns: Columns) -> Iterator[Entry]:
    """The rows of a CSV file, named by the lines that they begin on: a quoted field may hold newlines.

    Raises:
        InvalidInput: The file cannot be read to its end, or its header lacks a column.
    """
    # The limit is one of the whole process; nobody can want it lower than an item may be.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ITEM_BYTES))
    texts = _Texts(raw_lines(file, max_bytes))
    rows = csv.reader(texts, strict=True)
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise InvalidInput(f"the header is not CSV: {error}", f"{file.name}, line 1") from None
    if (problem := texts.take_problem()) is not None:
        raise InvalidInput(problem, f"{file.name}, line 1")
    picked = pick(file.name, header, columns)
    id_index = None if picked.id is None else header.index(picked.id)
    inputs = [header.index(column) for column in picked.inputs]
    while True:
        where = f"{file.name}, line {rows.line_num + 1}"
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
            value = row[inputs[0]] if picked.fill is None else picked.fill([row[index] for index in inputs])
            yield Entry.item(where, None if id_index is None else row[id_index] or None, value)


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
