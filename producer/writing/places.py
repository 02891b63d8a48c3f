"""Where files go: a path of this machine or a URL that fsspec knows; a file appears whole or not at all."""

import errno
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from typing import IO, Any
from uuid import UUID, uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from contracts.errors import InvalidRequest, SinkUnavailable, describe
from producer.urls import DATE, dated, shown

PARTIAL = ".partial"
_PROBE = bytes(4096)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_CLIENTS = ("adlfs", "aiohttp", "azure", "botocore", "gcsfs", "google", "paramiko", "requests", "s3fs")
"""Packages below fsspec whose errors are not all OSError."""


@dataclass(frozen=True)
class Place:
    """One file or folder, wherever it is."""

    name: str
    """As messages have it."""
    path: str
    """As its filesystem has it."""
    fs: Any
    root: str
    """The folder that has to be there; those between it and the file are made."""

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def within(self, name: str) -> "Place":
        """What is of that name in this folder."""
        return Place(posixpath.join(self.name, name), posixpath.join(self.path, name), self.fs, self.root)

    def check_file(self) -> None:
        """See that a file can be written here; nothing is left behind.

        Raises:
            InvalidRequest: There is a folder of that name, no folder to write to, or no permission.
            SinkUnavailable: The disk is full, or the store does not answer.
        """
        with explained(self.name):
            if self.fs.isdir(self.path):
                raise InvalidRequest(f"{self.name} is a folder: name a file in it")
        self._check_room()

    def check_folder(self) -> None:
        """The same of a folder, which need not be there."""
        with explained(self.name):
            if self.fs.isfile(self.path):
                raise InvalidRequest(f"{self.name} is a file: name a folder")
        self._check_room()

    def _check_room(self) -> None:
        if self.local:
            root = self.root or "."
            if not os.path.isdir(root):
                raise InvalidRequest(f"{self.name}: there is no folder {root}; make it first")
            if not os.access(root, os.W_OK | os.X_OK):
                raise InvalidRequest(f"{self.name}: this user may not write to the folder {root}; choose another")
        probe = posixpath.join(self.root, f".{uuid4().hex}{PARTIAL}")
        with explained(self.name), self._removing(probe), self.fs.open(probe, "wb") as stream:
            stream.write(_PROBE)
            _flush(stream)

    @contextmanager
    def replacing(self, owner: UUID | None = None) -> Iterator[IO[bytes]]:
        """A new file beside this one that takes its place when nothing was raised, and else is gone.

        Args:
            owner: Whose results they are: what a process left that was killed at them before is removed.

        Raises:
            InvalidRequest: It may not be written.
            SinkUnavailable: The disk is full, or the store does not answer.
        """
        folder, name = posixpath.split(self.path)
        whose = f".{name}.{owner.hex}-" if owner else f".{name}."
        # Of a random name all the same: whoever is taken for dead may yet write to his own.
        temporary = posixpath.join(folder, f"{whose}{uuid4().hex}{PARTIAL}")
        with explained(self.name), self._removing(temporary):
            if folder:
                self.fs.makedirs(folder, exist_ok=True)
            if owner is not None:
                beside = Place(posixpath.dirname(self.name), folder or ".", self.fs, self.root)
                for left in beside.sizes():
                    if left.startswith(whose) and left.endswith(PARTIAL):
                        beside.within(left).remove()
            with self.fs.open(temporary, "wb") as stream:
                yield stream
                _flush(stream)
            if self.local:
                os.replace(temporary, self.path)
                return
            try:  # a rename, or where there is none a copy that the store makes at once
                self.fs.mv(temporary, self.path)
            except FileExistsError:
                self.fs.rm_file(self.path)
                self.fs.mv(temporary, self.path)

    @contextmanager
    def _removing(self, temporary: str) -> Iterator[None]:
        try:
            yield
        finally:
            with suppress(Exception):  # the store may be what failed; it says so itself
                if self.fs.exists(temporary):
                    self.fs.rm_file(temporary)

    def sizes(self) -> dict[str, int]:
        """The files in this folder, by name, with their bytes; none where there is no folder.

        Raises:
            InvalidRequest: It may not be read.
            SinkUnavailable: The store does not answer.
        """
        with explained(self.name):
            self.fs.invalidate_cache()
            try:
                entries = self.fs.ls(self.path, detail=True)
            except FileNotFoundError:
                return {}
            return {posixpath.basename(entry["name"]): entry["size"] for entry in entries if entry["type"] == "file"}

    def remove(self) -> None:
        """Remove the file; one that is not there is as good.

        Raises:
            InvalidRequest: It may not be removed.
            SinkUnavailable: The store does not answer.
        """
        with explained(self.name), suppress(FileNotFoundError):
            self.fs.rm_file(self.path)


def place_of(url: str, day: date | None = None) -> Place:
    """The place that a URL or a path names, on a day where it holds `{date}`.

    Raises:
        InvalidRequest: Its protocol is unknown or its package is not installed, or there is no day.
        SinkUnavailable: What is at the URL has to be connected to first, and does not answer.
    """
    name = dated(url, day)
    # Folders named by the day are made; the one before them has to be there.
    fixed = f"{url.partition(DATE)[0]}_" if DATE in url else url.rstrip("/")
    if "://" not in name:
        return Place(name, name.rstrip("/") or "/", LocalFileSystem(), posixpath.dirname(fixed))
    try:
        with explained(shown(name)):
            fs, path = fsspec.core.url_to_fs(name)
    except (ImportError, ValueError) as error:
        raise InvalidRequest(
            f"{shown(name)}: {describe(error)}; choose another place, or install the package"
        ) from None
    return Place(shown(name), path.rstrip("/"), fs, fs._parent(fs._strip_protocol(fixed)))


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what the operating system or the store refuses into an error that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or describe(error)
        if error.errno in _FULL:
            advice = "free some space or choose another folder"
        elif isinstance(error, _REFUSED) or error.errno == errno.EROFS:
            raise InvalidRequest(f"{name} cannot be written: {reason}; choose another place") from error
        else:
            advice = "it can go on once this works again"
        raise SinkUnavailable(f"{name} cannot be written: {reason}; {advice}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise SinkUnavailable(
            f"{name} cannot be written: {describe(error)}; it can go on once this works again"
        ) from error


def _flush(stream: IO[bytes]) -> None:
    """Down to the disk where there is one: a rename must not outlive the bytes in a power cut."""
    stream.flush()
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError):
        return
    os.fsync(descriptor)
