"""A folder that one process at a time works in, however that process ends."""

import fcntl
import os
from pathlib import Path


def take(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock, which ends with the process; None where another has it.

    Raises:
        OSError: The folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
