"""One file of a source: opened where it is, through whatever packs it, with the bytes counted that were read of it."""

import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, cast

from fsspec.compression import compr

from contracts.errors import InvalidInput, UnavailableError, describe
from contracts.sources import Format

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
else:
    from backports.zstd import ZstdError

DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, ZstdError)
"""What reading a file raises when its device fails or what unpacks it cannot go on."""
_BUFFER_BYTES = 64 * 1024


@dataclass
class File:
    """One file, as it was when the source was opened."""

    system: Any
    """The fsspec filesystem that it is on."""
    path: str
    """Its path there."""
    url: str
    """What names it in messages where it cannot be opened, without a password."""
    name: str
    """What names it beside a line: its place below the source's folder."""
    size: int
    """In bytes as they are stored; 0 where that is not known."""
    mark: tuple[Any, ...]
    """What is different when it was changed."""
    format: Format
    compression: str | None
    """As fsspec names it; None when it is not packed."""
    bytes_read: int = field(default=0, compare=False)
    """So far, as they are stored."""

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine."""
        return bool(getattr(self.system, "local_file", False))

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The file for reading from its start, unpacked.

        Raises:
            InvalidInput: It cannot be opened.
            UnavailableError: A server that holds it does not answer.
        """
        with self.stored() as stream:
            if self.compression is None:
                yield stream
                return
            with io.BufferedReader(compr[self.compression](stream, mode="r"), _BUFFER_BYTES) as unpacked:
                yield unpacked

    @contextmanager
    def stored(self) -> Iterator[IO[bytes]]:
        """The file as it is stored; it can be sought in.

        Raises:
            InvalidInput: It cannot be opened.
            UnavailableError: A server that holds it does not answer.
        """
        try:
            # fsspec's own object for local files reads lines in Python, at a fraction of the speed.
            raw = open(self.path, "rb", 0) if self.is_local else self.system.open(self.path, "rb")  # noqa: SIM115
        except Exception as error:
            raise unreadable(error, self.url, local=self.is_local) from None
        self.bytes_read = 0
        with raw, io.BufferedReader(_Counted(self, raw), _BUFFER_BYTES) as stream:
            yield stream

    def broken(self, error: Exception, place: str) -> InvalidInput:
        """Why the file cannot be read on.

        Args:
            error: One of `DAMAGE`.
            place: The line or row that was not reached any more.
        """
        where = f"{self.name}, {place}"
        if isinstance(error, OSError) and error.errno is not None:
            return InvalidInput(f"the file cannot be read on: {error.strerror}", where)
        return InvalidInput(
            f"not a whole {self.compression} file, read to byte {self.bytes_read:,} of {self.size:,}: "
            f"{describe(error)}; write it again",
            where,
        )


class _Counted(io.RawIOBase):
    """A file whose bytes are counted; what a remote one fails with is told as ours."""

    def __init__(self, file: File, raw: Any) -> None:
        self._file = file
        self._raw = raw

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._raw.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            count = cast(int, self._raw.readinto(buffer))
        except Exception as error:
            if self._file.is_local:
                raise
            raise unreadable(error, self._file.url, local=False) from None
        self._file.bytes_read += count
        return count


def unreadable(error: Exception, url: str, *, local: bool) -> InvalidInput | UnavailableError:
    """Why a file or folder cannot be opened: what is wrong with it, or with the server that holds it."""
    if isinstance(error, FileNotFoundError):
        return InvalidInput("the file cannot be read: No such file or directory", url)
    # What packages for stores raise is of their own kinds: whatever does not say that the file is at fault can pass.
    if isinstance(error, OSError) and (local or isinstance(error, PermissionError | IsADirectoryError)):
        return InvalidInput(f"the file cannot be read: {error.strerror or describe(error)}", url)
    return UnavailableError(f"{url} cannot be read now: {describe(error)}")
