"""Whether a run's results would be rows of its own source: they would replace it, or be scored in the next night."""

import os
import posixpath
import re
from collections.abc import Iterator
from datetime import date
from glob import has_magic
from pathlib import PurePosixPath

from fsspec.utils import glob_translate

from contracts.errors import InvalidRequest
from contracts.sinks import FolderSink, Sink, SqlSink
from contracts.sources import FileSource, Source, SqlSource
from producer.reading.finding import suffixes
from producer.urls import dated, shown
from producer.writing.batch_file import errors_url

_LOCAL = re.compile(r"(?:file|local):/*(?=/)")
_PART = "part-00000.parquet"


def check_apart(source: Source, sink: Sink, report: str | None) -> None:
    """See that nothing is written where the source is read; tables are left to who writes the query.

    Args:
        source: What is read; its path absolute.
        sink: Where results go; its path absolute.
        report: Where the report goes.

    Raises:
        InvalidRequest: The source is what would be written, or would have it in it.
    """
    if isinstance(source, SqlSource):
        return
    read = _path(source.url)
    for what, url, path in _written(sink, report):
        if path == read or (isinstance(source, FileSource) and _takes(source, read, path)):
            raise InvalidRequest(f"{what} {shown(url)} is of the source {shown(source.url)}: write it elsewhere")


def _written(sink: Sink, report: str | None) -> Iterator[tuple[str, str, str]]:
    """What each is, its URL, and the path of a file as it may be called."""
    if isinstance(sink, FolderSink):
        yield "the sink", sink.url, posixpath.join(_path(sink.url), _PART)
    elif not isinstance(sink, SqlSink):
        yield "the sink", sink.url, _path(sink.url)
        if sink.kind == "openai":
            yield "the error file", errors_url(sink), _path(errors_url(sink))
    if report is not None:
        yield "the report", report, _path(report)


def _takes(source: FileSource, read: str, path: str) -> bool:
    """Whether the source's files are those of a pattern or a folder that the path is among."""
    kind, _ = suffixes(path)
    if source.format is not None and kind is not None and kind != source.format:
        return False  # of several formats, the one that is named is taken
    if has_magic(read):
        return re.fullmatch(glob_translate(read), path) is not None
    inside = path.removeprefix(f"{read}/")
    return inside != path and not any(part[0] in "._" for part in PurePosixPath(inside).parts)


def _path(url: str) -> str:
    """The same text for the same place, as far as that can be told without asking a server."""
    text = _LOCAL.sub("", dated(url, date.today()))
    if "://" in text:
        scheme, _, rest = text.partition("://")
        return f"{scheme}://{posixpath.normpath(rest)}"
    folder, name = os.path.split(text.rstrip("/"))
    # A link to the folder is followed, and one that is the file: it is the link that a sink replaces, and yet the
    # source would be found to have gone.
    return os.path.join(os.path.realpath(folder), name) if has_magic(name) else os.path.realpath(text)
