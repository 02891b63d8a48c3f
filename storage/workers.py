"""What workers say of themselves now and then: for people to look at, and to tell where a compression has room."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, text
from sqlalchemy.dialects.postgresql import insert

from storage.tables import workers

FORGOTTEN = timedelta(hours=1)
"""A worker that was not heard of for so long is taken off the list by the next one that starts."""


@dataclass(frozen=True)
class WorkerReport:
    """A worker process at one moment."""

    name: str
    """`host:pid`."""
    pool: str
    device: str
    """Its kind, as budgets are kept under."""
    slots: int
    held: int
    """Shards that it holds."""
    models: Sequence[int]
    """Ids of the models in memory."""
    model_bytes: int
    memory_limit: int
    inputs: int
    """Computed since it started."""
    tokens: int
    """Of these inputs, without padding."""
    disk_free: int | None = None
    """Bytes where the steps of compressions write; None of a worker that serves models."""


@dataclass(frozen=True)
class SeenWorker:
    """A worker as its row says."""

    name: str
    pool: str
    device: str
    slots: int
    held: int
    models: list[str]
    """References of the models in memory."""
    model_bytes: int
    memory_limit: int
    inputs: int
    tokens: int
    started_at: datetime
    seen_at: datetime
    disk_free: int | None

    def has_room(self, memory_bytes: int, disk_bytes: int) -> bool:
        """Whether its host has so much memory, and so much free disk where that is known."""
        return self.memory_limit >= memory_bytes and (self.disk_free is None or self.disk_free >= disk_bytes)


def report(connection: Connection, said: WorkerReport) -> None:
    """Note what a worker says of itself."""
    values = {**vars(said), "models": list(said.models)}
    changes = {name: value for name, value in values.items() if name != "name"}
    connection.execute(
        insert(workers)
        .values(**values)
        .on_conflict_do_update(index_elements=["name"], set_={**changes, "seen_at": func.now()})
    )


def forget(connection: Connection, name: str) -> None:
    """Take a worker off the list that ends, and those that were not heard of for long."""
    connection.execute(delete(workers).where((workers.c.name == name) | (workers.c.seen_at < func.now() - FORGOTTEN)))


_SEEN = text("""
    SELECT name, pool, device, slots, held,
           ARRAY(SELECT concat(m.name, '@', m.version) FROM models AS m WHERE m.id = ANY(workers.models) ORDER BY 1)
               AS models,
           model_bytes, memory_limit, inputs, tokens, started_at, seen_at, disk_free
    FROM workers WHERE seen_at > now() - :within ORDER BY pool, name
""")


def seen(connection: Connection, within: timedelta) -> list[SeenWorker]:
    """The workers that were heard of so lately, by pool and name."""
    return [SeenWorker(**row._mapping) for row in connection.execute(_SEEN, {"within": within})]
