"""What the supervisor writes down for others: who it is, where the servers listen, what runs."""

import os
from pathlib import Path
from typing import NamedTuple

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StackAddresses(NamedTuple):
    """Where the embedded servers listen."""

    database_url: str
    broker_url: str


class Identity(BaseModel):
    """A process that cannot be mistaken for a later one with the same number."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: float
    """Seconds after boot, so that setting the clock does not change it."""
    boot: str

    @classmethod
    def of(cls, pid: int) -> "Identity":
        """The identity of a running process.

        Raises:
            psutil.NoSuchProcess: It has ended.
        """
        return cls(pid=pid, started=_started(psutil.Process(pid)), boot=_boot())

    def find(self) -> psutil.Process | None:
        """The process, as long as it lives; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            same = self.boot == _boot() and abs(_started(process) - self.started) < 1.5
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class ChildState(BaseModel):
    """A program of the stack as the supervisor sees it."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int | None
    """None between its end and the next start."""
    restarts: int
    address: str | None = None
    """Where people reach it, if they do."""


class StackState(BaseModel):
    """The content of `stack.json`."""

    model_config = ConfigDict(frozen=True)

    supervisor: Identity
    ready: bool
    """The servers answered and the schema was brought up to date."""
    database_url: str
    broker_url: str
    children: list[ChildState]

    @property
    def addresses(self) -> StackAddresses:
        """Where the servers listen."""
        return StackAddresses(self.database_url, self.broker_url)


def read_state(path: Path) -> StackState | None:
    """What the last supervisor wrote; None when there is nothing that can be read."""
    try:
        return StackState.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def write_whole(path: Path, model: BaseModel) -> None:
    """Write the model as JSON, so that a reader sees the old or the new content and nothing between."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(model.model_dump_json(indent=2) + "\n")
    draft.replace(path)


def _started(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()


def _boot() -> str:
    # Without it, what starts at the same second after the next boot could pass for ours.
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
