"""The most memory that this process has held, on the processor or the GPU that it computes on."""

import ctypes
import re
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from worker.compression.room import free_memory

_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def held(device: str) -> int:
    """Bytes that are held now: of a processor those of the process, of a GPU those of tensors."""
    if device.startswith("cuda"):
        return int(torch.cuda.memory_allocated(device))
    _give_back()
    return int(psutil.Process().memory_info().rss)


def free(device: str) -> int:
    """Bytes that further processes may take of the host, and of the GPU that they compute on."""
    if device.startswith("cuda"):
        return min(free_memory(), int(torch.cuda.mem_get_info(device)[0]))
    return free_memory()


def forget_peak(device: str) -> None:
    """Let what is held now be the most, where the system lets a process say so."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    _give_back()
    with suppress(OSError):
        # proc(5): 5 resets VmHWM.
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int:
    """The most bytes that were held since."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    found = _PEAK.search(Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else int(psutil.Process().memory_info().rss)


def _give_back() -> None:
    """Free lists of the C library are nobody's tensors; glibc gives them back when it is asked."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
