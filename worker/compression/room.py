"""Whether a step fits into what this host has left of memory and disk."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import psutil

from contracts.errors import DoesNotFit
from contracts.preflight import Needs, all_disk
from storage.workers import SeenWorker
from worker.compression.supervision import Postponed

_CGROUP = Path("/sys/fs/cgroup")


class Shortage(Postponed):
    """There is enough memory, but others have it now."""


def check(ahead: Needs, folder: Path, missing: int = 0, hosts: Iterable[SeenWorker] = ()) -> None:
    """Let a step begin that has room, and whose successors have disk: they are not refused after hours.

    Args:
        ahead: What it takes at most, and each that follows.
        folder: Where they write.
        missing: Bytes of artifacts that are copied there before.
        hosts: Workers that compress, with what they have of both.

    Raises:
        DoesNotFit: This host has not the memory or the disk, and no other has both; says what it needs, and what there
            is.
        Shortage: There is enough memory, but others have it now.
        Postponed: Another host has both.
    """
    needed = ahead[0].memory_bytes if ahead else 0
    written = all_disk(ahead) + missing
    whole, free, disk = all_memory(), free_memory(), free_disk(folder)
    if (whole < needed or disk < written) and any(host.has_room(needed, written) for host in hosts):
        raise Postponed(
            f"it needs about {needed / 1e9:.1f} GB of memory and {written / 1e9:.1f} GB of disk, which another host has"
        )
    if whole < needed:
        raise DoesNotFit(
            f"it needs about {needed / 1e9:.1f} GB of memory, and this host has {whole / 1e9:.1f} GB: give it more, "
            "or begin with a smaller model"
        )
    if free < needed:
        raise Shortage(
            f"waiting for memory: it needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} of {whole / 1e9:.1f} GB "
            "are free on this host now"
        )
    if disk < written:
        what = "it writes" if len(ahead) < 2 else f"it and what follows ({ahead[-1].title} is the last) write"
        raise DoesNotFit(
            f"{what} about {written / 1e9:.1f} GB, and {disk / 1e9:.1f} GB are free in {folder}: free some "
            "space, or set BATCHMILL_HOME to where there is more"
        )


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
