"""The files of a source: one, all that a pattern matches, or all in a folder, on any filesystem that fsspec knows."""

import os
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.compression import compr
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from contracts.errors import BatchmillError, ConfigurationError, InvalidInput, InvalidRequest
from contracts.sources import Format
from producer.reading.files import File, unreadable
from producer.urls import shown

SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".txt": "txt",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".lz4": "lz4"}
_MARKS = ("etag", "md5hash", "checksum", "generation", "mtime", "lastmodified", "last_modified", "modified", "created")
"""What filesystems tell of a file that is another when its content is; the first that is there is taken."""

_NO_MATCH = "no file matches the pattern"
_NO_FILE = "the folder holds no file that could be read"


def find_files(url: str | Path, kind: Format | None = None) -> list[File]:
    """The files that a URL names, in the order of their paths.

    What a folder holds below it is taken too; files and folders whose names begin with `.` or `_` (manifests, markers)
    are not.

    Args:
        url: A path, a pattern, a folder, or one of these as an fsspec URL.
        kind: What the files hold; where several formats stand beside one another, those with its suffix are taken.

    Raises:
        InvalidInput: There is no such file or none that matches; or it cannot be read.
        InvalidRequest: A suffix is unknown, or formats are mixed.
        ConfigurationError: The package for the URL's protocol, or for a compression, is not installed.
        UnavailableError: A server does not answer.
    """
    text = shown(str(url))
    try:
        system, local, found, base = _found(url)
    except FileNotFoundError as error:
        if not (has_magic(str(url)) or str(url).endswith("/")):
            _of_suffix(str(url), kind, text)  # a suffix that says nothing would be refused as well
        raise unreadable(error, text, local=True) from None
    if not found:
        raise InvalidInput(_NO_MATCH if has_magic(str(url)) else _NO_FILE, text)
    several = list(found) != [base]
    files = []
    for path in _chosen(list(found), kind):
        name = path.removeprefix(base).lstrip("/") if several else PurePosixPath(path).name
        full = f"{text}: {name}" if several else text
        holds, compression = _of_suffix(path, kind, full)
        mark = _mark(path, found[path], local=local)
        files.append(File(system, path, full, name, int(mark[0] or 0), mark, holds, compression))
    if len(kinds := {file.format for file in files}) > 1:
        raise InvalidRequest(f"{text} holds files of several formats, {', '.join(sorted(kinds))}: name the one to read")
    return files


def changed(files: list[File], url: str | Path, kind: Format | None) -> InvalidInput | None:
    """What is not as it was when the files were found; None when nothing changed."""
    try:
        _, local, found, _ = _found(url)
    except FileNotFoundError:
        local, found = True, {}
    now = {path: _mark(path, found[path], local=local) for path in _chosen(list(found), kind)}
    again = "run it again when nothing writes to it"
    for file in files:
        if file.path not in now:
            return InvalidInput(f"the file went away while the source was read: {again}", file.url)
        if file.mark != now.pop(file.path):
            return InvalidInput(f"the file was changed while the source was read: {again}", file.url)
    return next(
        (InvalidInput(f"{path} appeared while the source was read: {again}", shown(str(url))) for path in now), None
    )


def _found(url: str | Path) -> tuple[Any, bool, dict[str, Any], str]:
    """The filesystem; whether it is this machine's; what it tells of each file, by its path in order; where they stand.

    Raises:
        FileNotFoundError: There is nothing of that name.
    """
    try:
        system, path = _file_system(url)
        system.invalidate_cache()
        return system, isinstance(system, LocalFileSystem), *_listed(system, path)
    except (BatchmillError, FileNotFoundError):
        raise
    except Exception as error:
        raise unreadable(error, shown(str(url)), local=_is_path(url)) from None


def _is_path(url: str | Path) -> bool:
    return isinstance(url, Path) or ("://" not in url and "::" not in url)


def _file_system(url: str | Path) -> tuple[Any, str]:
    if _is_path(url):
        return LocalFileSystem(), os.path.abspath(url)
    url = str(url)
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:
        protocol = url.partition("://")[0].rpartition("::")[2]
        package = known_implementations.get(protocol, {}).get("class", protocol).partition(".")[0]
        raise ConfigurationError(f"{shown(url)}: {error}: pip install {package}") from None
    except ValueError as error:
        raise InvalidRequest(f"{shown(url)}: {error}") from None


def _listed(system: Any, path: str) -> tuple[dict[str, Any], str]:
    try:
        info = system.info(path.rstrip("/") or "/")
    except FileNotFoundError:
        if not has_magic(path):
            raise
        base = path[: min(path.find(sign) for sign in "*?[" if sign in path)].rpartition("/")[0]
        last = path.rpartition("/")[2]
        found = {
            name: info
            for name, info in system.glob(path, detail=True).items()
            if info["type"] != "directory" and (name.rpartition("/")[2][:1] not in "._" or last[0] in "._")
        }
        return dict(sorted(found.items())), _bare(system, base)
    if info["type"] != "directory":
        return {info["name"]: info}, info["name"]
    base = info["name"].rstrip("/")
    found = {
        name: info
        for name, info in system.find(path.rstrip("/") or "/", detail=True).items()
        if not any(part[0] in "._" for part in name.removeprefix(base).split("/") if part)
    }
    return dict(sorted(found.items())), base


def _bare(system: Any, path: str) -> str:
    return str(system._strip_protocol(path)).rstrip("/")


def _chosen(names: list[str], kind: Format | None) -> list[str]:
    """Those with the format's suffix, where several formats are there."""
    if kind is None:
        return names
    return [name for name in names if suffixes(name)[0] == kind] or names


def suffixes(path: str) -> tuple[Format | None, str | None]:
    """The format and the compression that a name tells."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes[-2:]] or [""]
    compression = COMPRESSIONS.get(suffixes[-1])
    if compression is not None:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1] if suffixes else ""), compression


def _of_suffix(path: str, kind: Format | None, text: str) -> tuple[Format, str | None]:
    """What a file holds, and how it is packed."""
    told, compression = suffixes(path)
    if (holds := kind or told) is None:
        raise InvalidRequest(
            f"{text}: the suffix says what a file holds; known are {', '.join(SUFFIXES)}, each with "
            f"{', '.join(COMPRESSIONS)} behind it where it is packed; or name the format"
        )
    if compression is not None and compression not in compr:
        raise ConfigurationError(f"{text}: what unpacks it is not installed: pip install {compression}")
    return holds, compression


def _mark(path: str, info: dict[str, Any], *, local: bool) -> tuple[Any, ...]:
    """The size, and what else is different when the file was changed."""
    if local:
        try:
            status = os.stat(path)  # of what a link leads to
        except OSError:
            return (0,)
        return status.st_size, status.st_mtime_ns, status.st_ino
    known = {key.lower(): value for key, value in info.items()}
    return info.get("size"), next((str(known[key]) for key in _MARKS if known.get(key)), None)
