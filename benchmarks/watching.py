"""How busy a device is and how much of its memory is in use, looked at several times a second."""

import subprocess
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import psutil

PAUSE = 0.2
QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")


class Look(NamedTuple):
    """A device at one moment."""

    busy: float
    """The share of the time just past in which it computed; not a number where the driver does not tell."""
    used: float
    """Bytes of its memory that are in use, by whatever program."""


def parse(line: str) -> Look:
    """A line of nvidia-smi: percent and MiB, either of which may be `[N/A]`."""
    busy, used = line.split(",")
    return Look(_number(busy) / 100, _number(used) * 2**20)


def busy(looks: Sequence[Look]) -> float:
    """The mean share of time that the device was busy; not a number where nothing is known."""
    known = [look.busy for look in looks if look.busy == look.busy]
    return sum(known) / len(known) if known else float("nan")


def peak(looks: Sequence[Look]) -> float:
    """The most bytes that were in use beyond those of the first look; not a number where nothing is known."""
    known = [look.used for look in looks if look.used == look.used]
    return max(known) - known[0] if known else float("nan")


class Watch:
    """Looks at a device from a thread of its own, from the entry to the exit.

    Args:
        device: `cpu`, whose memory is the machine's, or `cuda:0`.
    """

    def __init__(self, device: str) -> None:
        self.looks: list[Look] = []
        self._look: Callable[[], Look] = _at_processors if device == "cpu" else lambda: _at_gpu(device)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._look()  # the first share of processors' time tells nothing
        self.looks.append(self._look())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(PAUSE):
            try:
                self.looks.append(self._look())
            except (OSError, ValueError, subprocess.SubprocessError):
                continue  # A look that fails is none; the next may not.


def _at_processors() -> Look:
    return Look(psutil.cpu_percent() / 100, float(psutil.virtual_memory().used))


def _at_gpu(device: str) -> Look:
    index = device.partition(":")[2] or "0"
    command = [*QUERY, f"--id={index}"]
    return parse(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=10).stdout.strip())


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return float("nan")
