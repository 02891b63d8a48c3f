"""Where the embedded stack keeps its files: one folder, private to its user."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import StackError

_REMEDY = "set BATCHMILL_HOME to a folder that you may write to"


@dataclass(frozen=True)
class Layout:
    """The paths under one home; naming them touches nothing."""

    home: Path

    @classmethod
    def of(cls, home: Path) -> "Layout":
        """The layout of a home, by whichever name or link it was reached."""
        return cls(home.expanduser().resolve())

    @property
    def postgres(self) -> Path:
        """The database's files."""
        return self.home / "postgres"

    @property
    def valkey(self) -> Path:
        """The broker's append-only file."""
        return self.home / "valkey"

    @property
    def logs(self) -> Path:
        """One log a program."""
        return self.home / "logs"

    @property
    def run(self) -> Path:
        """Sockets and what names running processes; worth nothing once they are gone."""
        return self.home / "run"

    @property
    def artifacts(self) -> Path:
        """The files of registered models, unless they live elsewhere."""
        return self.home / "artifacts"

    @property
    def flower_password(self) -> Path:
        """What Flower asks for, unless a setting says."""
        return self.home / "flower.password"

    @property
    def flower_port(self) -> Path:
        """Where Flower was served last."""
        return self.home / "flower.port"

    @property
    def state_file(self) -> Path:
        """What the supervisor says of itself."""
        return self.home / "stack.json"

    @property
    def start_lock(self) -> Path:
        """Held by whoever is starting the stack."""
        return self.run / "start.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor as long as it lives."""
        return self.run / "supervisor.lock"

    @property
    def supervisor_log(self) -> Path:
        """What the detached supervisor writes."""
        return self.logs / "supervisor.log"

    def prepare(self) -> "Layout":
        """Make the folders, readable by their owner alone.

        Raises:
            StackError: The home is a file, or may not be written to.
        """
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.postgres, self.valkey, self.logs, self.run, self.artifacts):
                folder.mkdir(mode=0o700, exist_ok=True)
            tempfile.TemporaryFile(dir=self.run).close()
            owner = self.run.stat().st_uid
        except (FileExistsError, NotADirectoryError):
            raise StackError(f"{self.home}: a file stands where a folder should; {_REMEDY}") from None
        except OSError as error:
            raise StackError(f"{error.filename or self.home} cannot be written: {error.strerror}; {_REMEDY}") from None
        if owner != os.geteuid():
            raise StackError(f"{self.home} holds the stack of user {owner}: run as that user, or {_REMEDY}")
        return self
