"""The writer of each kind of sink."""

from datetime import date

from contracts.sinks import BatchFileSink, FileSink, FolderSink, Sink, SqlSink
from producer.writing.base import Writer
from producer.writing.batch_file import BatchFileWriter
from producer.writing.file import FileWriter
from producer.writing.folder import FolderWriter
from producer.writing.table import TableWriter


def open_sink(sink: Sink, *, day: date | None = None) -> Writer:
    """What writes to the sink; nothing is opened or made yet.

    Args:
        sink: Where results go.
        day: What `{date}` in its URL stands for.

    Raises:
        InvalidRequest: The URL is none, or has a `{date}` and there is no day.
        SinkUnavailable: It has to be connected to first, and does not answer.
    """
    match sink:
        case FileSink():
            return FileWriter(sink, day)
        case FolderSink():
            return FolderWriter(sink, day)
        case SqlSink():
            return TableWriter(sink)
        case BatchFileSink():
            return BatchFileWriter(sink, day)
