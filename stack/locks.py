"""Locks between processes that end with their holder, however it ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contracts.errors import StackError

_PAUSE = 0.02


@contextmanager
def hold(path: Path, seconds: float) -> Iterator[None]:
    """The lock for the length of the block; programs that are started within do not inherit it.

    Raises:
        StackError: Someone else had it for all of the time given.
    """
    descriptor = hold_for_life(path, seconds)
    try:
        yield
    finally:
        os.close(descriptor)


def hold_for_life(path: Path, seconds: float) -> int:
    """The lock until this process, and every child that it forks off meanwhile, is gone; its file descriptor.

    Raises:
        StackError: Someone else had it for all of the time given.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + seconds
    while not _try(descriptor, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise StackError(f"{path}: another process has held this lock for {seconds:.0f} s")
        time.sleep(_PAUSE)
    return descriptor


def held(path: Path) -> bool:
    """Whether someone holds the lock now.

    Raises:
        StackError: The lock is another user's.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise StackError(f"{path} belongs to another user: run as that user, or set BATCHMILL_HOME") from None
    try:
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def lost(path: Path, descriptor: int) -> bool:
    """Whether a lock that is held has been removed, so that someone else can take a new one in its place."""
    try:
        return not os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return True


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
