"""Files as a source: `.jsonl`, `.txt`, `.csv`, `.parquet` and Arrow, packed or not, in memory that does not grow.

A line that cannot be taken is handed over as such, with its error, so that the caller decides whether the file is
refused or the line left out; what ends the file (it is missing, or shrinks while it is read) is raised.
"""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from contracts.canonical import MAX_INPUT_BYTES
from contracts.errors import InvalidRequest
from contracts.sources import Columns, FileSource, Format
from producer.reading.arrow_file import read_arrow
from producer.reading.csv_file import read_csv
from producer.reading.files import File
from producer.reading.jsonl_file import read_jsonl
from producer.reading.lines import Entry
from producer.reading.parquet_file import count_parquet, read_parquet
from producer.reading.reading import FilesReading
from producer.reading.text_file import read_text

COUNTED = 256
"""Parquet files that are looked into before the first is read: of more it takes long, where a store is far away."""


class FileReading(FilesReading):
    """Files whose lines or rows are inputs.

    Raises:
        InvalidInput: There is none, or the first cannot be opened or lacks a column.
        InvalidRequest: A suffix is unknown, formats are mixed, or columns are named for files that have none.
        ConfigurationError: The package for the URL's protocol, or for a compression, is not installed.
        UnavailableError: A server that holds them does not answer.
    """

    def __init__(self, url: str | Path, kind: Format | None, columns: Columns, max_input_bytes: int) -> None:
        super().__init__(url, kind)
        self._columns = columns
        self._max_bytes = max_input_bytes
        found = self._files[0].format
        if found == "txt" and columns != Columns():
            raise InvalidRequest(f"{self._files[0].url}: a .txt file has no columns; leave out which to take")
        if found == "parquet" and len(self._files) <= COUNTED and not any(file.compression for file in self._files):
            self.rows = sum(count_parquet(file, columns) for file in self._files)
        # The first entry is drawn at once, so that files that cannot be read are refused here.
        self._first = list(islice(self._stream, 1))

    def _entries(self) -> Iterator[Entry]:
        return chain(self._first, self._stream)

    def _read(self, file: File) -> Iterator[Entry]:
        match file.format:
            case "jsonl":
                return read_jsonl(file, self._max_bytes, self._columns)
            case "txt":
                return read_text(file, self._max_bytes)
            case "csv":
                return read_csv(file, self._max_bytes, self._columns)
            case "parquet":
                return read_parquet(file, self._columns)
            case "arrow":
                return read_arrow(file, self._columns)


def open_files(source: FileSource, max_input_bytes: int) -> FileReading:
    """The files of a source."""
    return FileReading(source.url, source.format, source.columns, max_input_bytes)


def read(
    path: str | Path,
    *,
    id_column: str | None = None,
    input_column: str | None = None,
    max_input_bytes: int = MAX_INPUT_BYTES,
) -> Iterator[Entry]:
    """The lines of a file, of all that a pattern matches (`logs/*.jsonl`), or of all in a folder.

    - `.jsonl`: a bare value, or an object with the keys `input` and, where wanted, `id`, and no other unless keys are
      named. Blank lines are passed over.
    - `.txt`: each line is an input, an empty one too; there are no ids.
    - `.csv`: has a header; other columns are passed over, an empty id is none.
    - `.parquet`, `.arrow`, `.feather`: the same; the input may be text, a number, a boolean, or lists and structs of
      these.

    Behind it may stand how the file is packed: `.gz`, `.bz2`, `.xz` or `.zst`.

    Args:
        path: The file, or any URL that fsspec knows (`s3://bucket/day/`); the suffix says what it holds.
        id_column: The column or key of the caller's ids; `id` where there is one when not given.
        input_column: The column or key of the inputs; `input` when not given.
        max_input_bytes: What a line may take; a longer one is passed over unparsed, and handed over as bad. It goes
            with the setting of that name, which clients hold inputs to.

    Raises:
        InvalidRequest: The suffix is unknown, or columns are named for a file that has none.
        InvalidInput: The file cannot be opened or lacks a column; while reading: it ends early or is damaged.
        ConfigurationError: The package for the URL's protocol, or for a compression, is not installed.
        UnavailableError: A server that holds the file does not answer.
    """
    columns = Columns(id=id_column or None, input=input_column or None)
    return FileReading(path, None, columns, max_input_bytes).entries()
