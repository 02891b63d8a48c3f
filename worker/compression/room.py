"""Whether a step fits into what this host has left of memory and disk."""

import shutil
from pathlib import Path

import psutil
from sqlalchemy import Connection

from contracts.errors import DoesNotFit
from contracts.names import COMPRESSION_POOL
from contracts.preflight import Needs, all_disk
from storage import overview, workers
from worker.compression.supervision import Postponed

_CGROUP = Path("/sys/fs/cgroup")


def check(ahead: Needs, folder: Path, missing: int = 0, elsewhere: int = 0) -> None:
    """Let a step begin that has room, and whose successors have disk: they are not refused after hours.

    Args:
        ahead: What it takes at most, and each that follows.
        folder: Where they write.
        missing: Bytes of artifacts that are copied there before.
        elsewhere: Bytes of memory of the largest host that compresses.

    Raises:
        DoesNotFit: No host has the memory, or this one not the disk; says what it needs, and what there is.
        Postponed: There is enough memory, but others have it now, or it is another host's.
    """
    needed = ahead[0].memory_bytes if ahead else 0
    whole, free = all_memory(), free_memory()
    if whole < needed <= elsewhere:
        raise Postponed(f"it needs about {needed / 1e9:.1f} GB of memory, which another host has")
    if whole < needed:
        raise DoesNotFit(
            f"it needs about {needed / 1e9:.1f} GB of memory, and this host has {whole / 1e9:.1f} GB: give it more, "
            "or begin with a smaller model"
        )
    if free < needed:
        raise Postponed(
            f"waiting for memory: it needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} of {whole / 1e9:.1f} GB "
            "are free on this host now"
        )
    written = all_disk(ahead) + missing
    if (disk := free_disk(folder)) < written:
        what = "it writes" if len(ahead) < 2 else f"it and what follows ({ahead[-1].title} is the last) write"
        raise DoesNotFit(
            f"{what} about {written / 1e9:.1f} GB, and {disk / 1e9:.1f} GB are free in {folder}: free some "
            "space, or set BATCHMILL_HOME to where there is more"
        )


def largest_host(connection: Connection) -> int:
    """Bytes of memory of the host that has the most, of those that compress and were heard of lately; 0 without any."""
    seen = workers.seen(connection, overview.HEARD_OF)
    return max((worker.memory_limit for worker in seen if worker.pool == COMPRESSION_POOL), default=0)


def free_disk(folder: Path) -> int:
    """Bytes that may still be written below a folder, which may not exist yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def all_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes that there are, taken or not: of the machine, or of the control group that a container is."""
    total = psutil.virtual_memory().total
    try:
        return min(total, int((cgroup / "memory.max").read_text()))
    except (OSError, ValueError):  # "max" is no number: there is no limit
        return total


def free_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes that may still be taken: of the machine, and of the control group that a container is."""
    free = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        lines = (cgroup / "memory.stat").read_text().splitlines()
        cached = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration):
        return free
    return min(free, limit - used + cached)
