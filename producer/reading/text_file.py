"""Text files: each line is an input."""

from collections.abc import Iterator

from producer.reading.files import File
from producer.reading.lines import Entry, raw_lines


def read_text(file: File, max_bytes: int) -> Iterator[Entry]:
    """The lines of a text file; there are no ids.

    Raises:
        InvalidInput: The file cannot be read to its end.
    """
    for raw in raw_lines(file, max_bytes):
        where = f"{file.name}, line {raw.number}"
        if raw.problem is not None:
            yield Entry.bad(where, raw.problem)
            continue
        try:
            yield Entry(where, None, raw.data.removesuffix(b"\n").removesuffix(b"\r").decode(), None)
        except UnicodeDecodeError as error:
            yield Entry.bad(where, raw.not_text(error))
