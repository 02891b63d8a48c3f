"""The artifact store: the files of models, kept once under their digest, so that they reach every host.

A file stands at `sha256/ab/abcdef…` below the store's URL and is never changed. A worker fetches the files that a
model's manifest names into a folder of its own cache, laid out as the original; they are copied, not linked, so
that nothing done to a cache can reach the store. Their sums are checked each time, so that no model is loaded from
bytes that are not what was registered.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO
from uuid import uuid4

import fsspec

from contracts.canonical import canonicalize
from contracts.errors import ArtifactError, ArtifactsUnavailable, ConfigurationError
from contracts.models import ArtifactFile

log = logging.getLogger(__name__)

_CHUNK = 4 * 1024 * 1024
_HASHERS = 4
"""Files that are hashed at once: a core takes half a second to two seconds for a gigabyte, whatever the disk gives."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def manifest_digest(files: Iterable[ArtifactFile]) -> str:
    """SHA-256 over the manifest, as hex: equal for equal files, whatever their order."""
    entries = sorted((file.path, file.sha256, file.size) for file in files)
    return hashlib.sha256(canonicalize(entries)).hexdigest()


class ArtifactStore:
    """Files by content, in a folder or at any URL that fsspec knows (`s3://bucket/models`, `gs://…`).

    Raises:
        ConfigurationError: The URL's protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"artifacts {url!r}: {error}") from None
        self._root = root.rstrip("/")

    def add(self, folder: Path, paths: Sequence[str] | None = None) -> list[ArtifactFile]:
        """Store a folder's files and return its manifest, sorted by path.

        Args:
            folder: Where the files stand; links to files are followed.
            paths: The files to take, relative to the folder; every file below it when not given.

        Raises:
            ArtifactError: A file is not there, or changes meanwhile.
            ArtifactsUnavailable: It cannot be read, or the store cannot take it.
        """
        if paths is None:
            paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return [self._add_file(folder, path) for path in sorted(paths)]

    def fetch(self, files: Sequence[ArtifactFile], into: Path) -> Path:
        """The folder `into/<manifest digest>` that holds the files; what was fetched before is used again.

        Every file that is there is verified by its SHA-256, each time; where one is damaged or missing,
        all are fetched anew, each verified while it is copied, and the folder appears as a whole. Several processes may
        ask at once.

        Raises:
            ArtifactError: The manifest is not one, or a file is missing or is not what was registered.
            ArtifactsUnavailable: The store cannot be read, or the cache cannot be written.
        """
        _check_manifest(files)
        digest = manifest_digest(files)
        folder = into / digest
        if folder.is_dir() and not _damaged(folder, files):
            return folder
        partial = into / f".{digest}.partial"
        with _explained(f"the cache {into}"):
            into.mkdir(parents=True, exist_ok=True)
            # Whoever comes second waits and finds the folder; the lock ends with its process, so one that died
            # leaves nothing but a partial folder, which the next removes.
            with open(into / f".{digest}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if folder.is_dir():
                    if not (damaged := _damaged(folder, files)):
                        return folder
                    log.warning("%s: fetched anew, for it is damaged: %s", folder, ", ".join(damaged))
                shutil.rmtree(partial, ignore_errors=True)
                try:
                    partial.mkdir()
                    for file in files:
                        self._fetch_file(file, partial / file.path)
                    shutil.rmtree(folder, ignore_errors=True)
                    os.rename(partial, folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        return folder

    def restore(self, folder: Path, files: Sequence[ArtifactFile]) -> None:
        """Store a manifest's files once more, in place of what is damaged there.

        Raises:
            ArtifactError: A file of the folder is not what the manifest says.
            ArtifactsUnavailable: It cannot be read, or the store cannot take it.
        """
        _check_manifest(files)
        for file in files:
            with _explained(f"the artifact store {self.url}"):
                self._put(folder / file.path, file)

    def _add_file(self, folder: Path, path: str) -> ArtifactFile:
        source = folder / path
        with _explained(str(source)), open(source, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        file = ArtifactFile(path=path, sha256=sha256, size=size)
        _check_manifest([file])
        with _explained(f"the artifact store {self.url}"):
            if self._stored_size(file) != size:
                self._put(source, file)
        return file

    def _put(self, source: Path, file: ArtifactFile) -> None:
        final = self._location(file)
        temporary = f"{final}.{uuid4().hex}.partial"
        self._fs.makedirs(final.rpartition("/")[0], exist_ok=True)
        try:
            with open(source, "rb") as reader, self._fs.open(temporary, "wb") as writer:
                sha256, size = _copy(reader, writer)
                _flush(writer)
            if (sha256, size) != (file.sha256, file.size):
                raise ArtifactError(f"{source} changed while it was read; add it again when nothing writes to it")
            try:
                self._fs.mv(temporary, final)
            except FileExistsError:
                if self._stored_size(file) != file.size:  # else another process has just stored the same bytes
                    raise
        finally:
            if self._fs.exists(temporary):
                self._fs.rm_file(temporary)

    def _fetch_file(self, file: ArtifactFile, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            reader = self._fs.open(self._location(file), "rb")
        except FileNotFoundError:
            raise ArtifactError(
                f"{file.path} (SHA-256 {file.sha256}) is not in the artifact store {self.url}; check "
                "BATCHMILL_ARTIFACTS on this host, or add the model again"
            ) from None
        with reader, open(target, "wb") as writer:
            sha256, size = _copy(reader, writer)
            _flush(writer)
        if (sha256, size) != (file.sha256, file.size):
            raise ArtifactError(
                f"{file.path} in the artifact store {self.url}: expected SHA-256 {file.sha256} ({file.size} bytes), "
                f"found {sha256} ({size} bytes); delete {self._location(file)} and add the model again"
            )

    def _location(self, file: ArtifactFile) -> str:
        return f"{self._root}/sha256/{file.sha256[:2]}/{file.sha256}"

    def _stored_size(self, file: ArtifactFile) -> int | None:
        try:
            return int(self._fs.info(self._location(file))["size"])
        except FileNotFoundError:
            return None


def _check_manifest(files: Sequence[ArtifactFile]) -> None:
    """A manifest comes from a database: none of its words may lead out of the cache or the store."""
    seen: set[str] = set()
    for file in files:
        path = PurePosixPath(file.path)
        plain = str(path) == file.path and not path.is_absolute() and not {".", ".."} & {*path.parts, file.path}
        if not plain or "\\" in file.path or "\0" in file.path:
            raise ArtifactError(f"{file.path!r} in a manifest: a path is relative to the model's folder, within it")
        if not _SHA256.fullmatch(file.sha256):
            raise ArtifactError(f"{file.path!r} in a manifest: {file.sha256!r} is no SHA-256 in hex")
        if file.path in seen:
            raise ArtifactError(f"{file.path!r} stands twice in a manifest")
        seen.add(file.path)


def _damaged(folder: Path, files: Sequence[ArtifactFile]) -> list[str]:
    """Paths of the files that do not stand in the folder as they were registered."""
    with ThreadPoolExecutor(_HASHERS, "verify") as threads:
        holds = threads.map(lambda file: _holds(folder / file.path, file), files)
        return [file.path for file, good in zip(files, holds, strict=True) if not good]


def _holds(path: Path, file: ArtifactFile) -> bool:
    """Whether the file at the path is what was registered."""
    try:
        if path.stat().st_size != file.size:
            return False
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    except OSError:
        return False


def _copy(reader: IO[bytes], writer: IO[bytes]) -> tuple[str, int]:
    """Copy a stream; the SHA-256 and the size of what went through."""
    sha256 = hashlib.sha256()
    size = 0
    while chunk := reader.read(_CHUNK):
        sha256.update(chunk)
        size += len(chunk)
        writer.write(chunk)
    return sha256.hexdigest(), size


def _flush(writer: IO[bytes]) -> None:
    """Down to the disk where there is one: a rename must not outlive the bytes in a power cut."""
    writer.flush()
    try:
        descriptor = writer.fileno()
    except (AttributeError, OSError):
        return
    os.fsync(descriptor)


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Turn what the operating system or the remote store refuses into an error that says what to do."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full: free some space and try again",
            errno.EDQUOT: "the quota is used up: free some space and try again",
            errno.EROFS: "the file system is read-only: choose another folder (BATCHMILL_HOME, BATCHMILL_ARTIFACTS)",
            errno.EACCES: "permission denied: let this user in, or choose another folder "
            "(BATCHMILL_HOME, BATCHMILL_ARTIFACTS)",
        }.get(error.errno or 0, f"{type(error).__name__}: {error}")
        where = f"{place} ({error.filename})" if error.filename else place
        kind = ArtifactError if isinstance(error, FileNotFoundError) else ArtifactsUnavailable
        raise kind(f"{where}: {advice}") from error
