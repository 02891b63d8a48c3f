"""A source that is open: its entries, how far they were read, and what is known beforehand."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Self

from contracts.names import Task
from contracts.sources import Format
from producer.reading.files import File
from producer.reading.finding import changed, find_files
from producer.reading.lines import Entry


class Reading(ABC):
    """Gives the entries of a source once, in memory that does not grow with it."""

    rows_read = 0
    """Entries that were handed over, bad ones too."""
    rows: int | None = None
    """In all, where the source says so beforehand."""
    bytes: int | None = None
    """In all, as they are stored; None for a query."""
    task: Task | None = None
    """What the requests of a batch file ask for."""
    model: str | None = None
    """The model that they name."""
    params: dict[str, Any] | None = None
    """The parameters of the task that they set; others are the caller's to choose."""
    endpoint: str | None = None
    """The `url` that they have, such as `/v1/embeddings`."""

    @property
    def bytes_read(self) -> int:
        """So far, as they are stored."""
        return 0

    def entries(self) -> Iterator[Entry]:
        """The entries, in the same order each time that the source is opened.

        Raises:
            InvalidInput: The source ends early, or cannot be read on; the line or row is named.
            UnavailableError: A server that holds it does not answer.
        """
        for entry in self._entries():
            self.rows_read += 1
            yield entry

    @abstractmethod
    def _entries(self) -> Iterator[Entry]: ...

    @abstractmethod
    def check_unchanged(self) -> None:
        """See, when all was read, that it is what it was when the source was opened.

        Raises:
            InvalidInput: A file was changed, appeared, or went away meanwhile.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FilesReading(Reading):
    """Files that are open to be read, one after the other.

    Raises:
        InvalidInput: There is none, or it cannot be read.
        InvalidRequest: A suffix is unknown, or formats are mixed.
        ConfigurationError: The package for the URL's protocol, or for a compression, is not installed.
        UnavailableError: A server that holds them does not answer.
    """

    def __init__(self, url: str | Path, kind: Format | None) -> None:
        self._url = url
        self._kind = kind
        self._files = find_files(url, kind)
        self.bytes = sum(file.size for file in self._files)
        self._stream = self._all()

    @property
    def bytes_read(self) -> int:
        """So far, as they are stored."""
        return sum(file.bytes_read for file in self._files)

    def _all(self) -> Generator[Entry]:
        for file in self._files:
            yield from self._read(file)

    def _entries(self) -> Iterator[Entry]:
        return self._stream

    @abstractmethod
    def _read(self, file: File) -> Iterator[Entry]: ...

    def check_unchanged(self) -> None:
        """See, when all was read, that the files are what they were when the source was opened.

        Raises:
            InvalidInput: One was changed, appeared, or went away meanwhile.
        """
        if (problem := changed(self._files, self._url, self._kind)) is not None:
            raise problem

    def close(self) -> None:
        """Close the file that is being read."""
        self._stream.close()
