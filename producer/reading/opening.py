"""Any source, opened."""

from contracts.canonical import MAX_INPUT_BYTES
from contracts.sources import BatchFileSource, FileSource, Source, SqlSource
from producer.reading.batch_source import BatchReading
from producer.reading.file_source import open_files
from producer.reading.reading import Reading
from producer.reading.sql_source import QueryReading


def open_source(source: Source, *, max_input_bytes: int = MAX_INPUT_BYTES) -> Reading:
    """A source, open to be read once; what cannot be read at all is refused here.

    Args:
        source: What to read.
        max_input_bytes: What a line of a file may take.

    Raises:
        InvalidInput: It is missing, damaged, or lacks a column; or the query is wrong.
        InvalidRequest: A suffix is unknown, formats are mixed, columns are named for files that have none, or the URL
            of a database is none.
        ConfigurationError: A package that it needs is not installed.
        UnavailableError: A server does not answer.
    """
    match source:
        case FileSource():
            return open_files(source, max_input_bytes)
        case SqlSource():
            return QueryReading(source)
        case BatchFileSource():
            return BatchReading(source, max_input_bytes)
