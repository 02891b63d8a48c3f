"""Unix sockets in folders that nobody else can enter, at paths that the kernel takes."""

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

from contracts.errors import StackError

POSTGRES_SOCKET = ".s.PGSQL.5432"
_LIMIT = 103
"""Bytes that a socket's path may have: 107 on Linux, 103 elsewhere."""
_PLAIN = re.compile(r"/[A-Za-z0-9._/-]*")
"""What needs no quoting in a connection string, a list of hosts or a URL."""


def socket_folder(base: Path) -> Path:
    """The folder of `choose`, made private to this user.

    Raises:
        StackError: It belongs to someone else, or no path is short enough.
    """
    return _private(choose(base))


def choose(base: Path) -> Path:
    """`base/run` where its path will do, else a short folder whose name follows from that of `base`; makes nothing.

    Raises:
        StackError: The short folder's path is too long as well.
    """
    folder = base / "run"
    if _fits(folder):
        return folder
    root = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    short = root / f"batchmill-{os.geteuid()}-{hashlib.sha256(os.fsencode(base)).hexdigest()[:16]}"
    if not _fits(short):
        raise StackError(f"{short}: the path is too long for a socket; set XDG_RUNTIME_DIR to a short one")
    return short


def _fits(folder: Path) -> bool:
    path = str(folder / POSTGRES_SOCKET)
    return len(path) <= _LIMIT and _PLAIN.fullmatch(path) is not None


def _private(folder: Path) -> Path:
    """Make the folder, or make sure that it is ours alone: another user may have put it there to listen in."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StackError(
            f"{folder} cannot hold sockets: {error.strerror}; move it away or set BATCHMILL_HOME elsewhere"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise StackError(
            f"{folder} is not a folder that only user {os.geteuid()} may enter: "
            "remove it, or set BATCHMILL_HOME elsewhere"
        )
    return folder
