"""What a compression works with: its process's means, and what is held under a lease."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from contracts.compression import CompressionSpec
from contracts.models import TargetSpec
from contracts.settings import Settings
from storage import compressions, inputs
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.shards import Lease
from worker.compression import supervision


@dataclass(frozen=True)
class Means:
    """What all compressions of a process work with."""

    settings: Settings
    database: Database
    store: ArtifactStore
    environment: dict[str, str]
    """Of subprocesses."""
    command: Sequence[str] = supervision.COMMAND
    """What starts one."""


@dataclass(frozen=True)
class Held:
    """A claimed compression."""

    lease: Lease
    target: TargetSpec
    spec: CompressionSpec
    prefixes: list[int]
    """Inputs: the recipe up to each of its steps."""
    finish: int
    """The input whose result is the model."""

    @classmethod
    def of(cls, connection: Connection, lease: Lease, target: TargetSpec) -> "Held":
        """What the lease's job is about."""
        *prefixes, finish = inputs.ids_of_job(connection, lease.job_id)
        return cls(lease, target, compressions.get(connection, lease.job_id), prefixes, finish)
