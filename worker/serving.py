"""What a worker process is to the application around it, whatever its pool asks of it."""

import os
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from logging import WARNING, Logger
from typing import NamedTuple, Protocol, TypeVar
from uuid import UUID

from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential,
)

from contracts.errors import DatabaseUnavailable

T = TypeVar("T")


def worker_name() -> str:
    """What this process is called, if it is a worker: `host:pid`."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Served(NamedTuple):
    """What a ticket came to: the shard that it claimed, whatever became of that."""

    job: UUID
    shard: UUID
    items: int
    model: str


class Process(Protocol):
    """A process that claims shards of its pool, one for each ticket."""

    name: str
    claimed_at: float
    """When it last claimed a shard."""

    def start(self) -> None:
        """Begin to work."""

    def drain(self) -> None:
        """Claim nothing new, and let go what is held: slots give their leases back and return."""

    def stop(self) -> None:
        """End after `drain`."""

    def give_back(self) -> None:
        """Release every lease at once, whatever the slots are busy with: the process is about to end."""

    def serve(self, pool: str) -> Served | None:
        """Serve one ticket; None when there was nothing to claim."""

    def stalled_for(self) -> float:
        """Seconds for which the device is busy with one pass; 0 when it is not."""

    @property
    def idle(self) -> bool:
        """Whether it holds no shard."""

    def starves(self) -> bool:
        """Whether it is idle while the database holds work that it could claim."""


def patiently(function: Callable[[], T], lease: timedelta, leaving: threading.Event, log: Logger) -> T:
    """Call it again while Postgres is away, for as long as a lease lasts, or until the process is to end."""
    retrying = Retrying(
        retry=retry_if_exception_type(DatabaseUnavailable),
        wait=wait_exponential(multiplier=0.1, max=2),
        sleep=sleep_using_event(leaving),
        stop=stop_after_delay(lease.total_seconds()) | stop_when_event_set(leaving),
        before_sleep=before_sleep_log(log, WARNING),
        reraise=True,
    )
    return retrying(function)
