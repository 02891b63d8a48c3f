"""Where a compression keeps files between its steps, on the host that works on it."""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from contracts.errors import ArtifactsUnavailable
from worker.folder_lock import take

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scratch:
    """The folder of one job; what it holds is worth nothing to any other."""

    folder: Path
    lock: int
    """A descriptor: whoever has it open keeps others out of the folder, a subprocess too."""

    def fetched(self) -> Path:
        """Artifacts between the first and the last, and rows."""
        return self.folder / "fetched"

    def of(self, position: int) -> Path:
        """What a step may leave for its next attempt."""
        return _made(self.folder / str(position) / "scratch")

    def destination(self, position: int) -> Path:
        """An empty folder for what a step writes."""
        folder = self.written(position)
        shutil.rmtree(folder, ignore_errors=True)
        return _made(folder)

    def written(self, position: int) -> Path:
        """What a step wrote there."""
        return self.folder / str(position) / "destination"

    def looks(self, position: int) -> Path:
        """A file of as many bytes as it was seen that a step had to rest for memory."""
        return self.folder / str(position) / "looks"

    def done(self, position: int) -> None:
        """Remove what a step needs no more."""
        shutil.rmtree(self.folder / str(position), ignore_errors=True)

    def remove(self) -> None:
        """The job has ended: nothing of it is needed."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def scratch(root: Path, job_id: UUID) -> Iterator[Scratch]:
    """The folder of a job, for this process and its subprocesses alone.

    Raises:
        ArtifactsUnavailable: It cannot be made, or a process that lost the job still works in it.
    """
    folder = root / str(job_id)
    lock = _lock(folder)
    if lock is None:
        raise ArtifactsUnavailable(f"{folder} is in use: a process of this host that lost the job has yet to notice")
    try:
        yield Scratch(folder, lock)
    finally:
        os.close(lock)


def remove_stale(root: Path, open_jobs: Callable[[list[UUID]], Iterable[UUID]]) -> None:
    """Remove the folders of jobs that have ended, where nobody works.

    Args:
        root: What holds them.
        open_jobs: Tells which of so many jobs have not ended.
    """
    found = {UUID(path.name): path for path in (root.iterdir() if root.is_dir() else ()) if _is_uuid(path.name)}
    for job_id in set(found) - set(open_jobs(list(found))):
        lock = _lock(found[job_id])
        if lock is not None:
            shutil.rmtree(found[job_id], ignore_errors=True)
            os.close(lock)
            log.info("removed what job %s left on this host", job_id)


def _lock(folder: Path) -> int | None:
    """A descriptor of the folder, locked; None where another process has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return take(folder)
    except OSError as error:
        raise ArtifactsUnavailable(f"{folder}: {error.strerror}: set BATCHMILL_HOME to where you may write") from error


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactsUnavailable(f"{folder}: {error.strerror}: free some space and submit again") from error
    return folder


def _is_uuid(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False
