"""A run that this process holds: its lease is renewed for as long as a phase works on it."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

from contracts.errors import DatabaseUnavailable, LeaseLost
from storage import runs
from storage.database import Database
from storage.runs import RunLease

log = logging.getLogger(__name__)

_BIRTH = uuid4().hex[:8]
"""In a container that was started anew, host and process number are those of the one that died."""
LOOK_SECONDS = 5.0
"""How often it renews, where leases are not shorter still: a run that was cancelled stops within so long."""


def runner_name() -> str:
    """What this process is called as the holder of runs: `host:pid:birth`, as no other ever."""
    return f"{socket.gethostname()}:{os.getpid()}:{_BIRTH}"


class Interrupted(Exception):
    """The process is to end: the phase gives its run back."""


class Held:
    """A lease on a run.

    Args:
        database: Where it is.
        lease: As it was taken, just now.
        duration: How long it lasts unless it is renewed.
        leaving: Set once the process is to end.
    """

    def __init__(
        self, database: Database, lease: RunLease, duration: timedelta, leaving: threading.Event | None = None
    ) -> None:
        self.run = lease.run
        self.token = lease.token
        self.attempt = lease.attempt
        self.written = lease.written
        self.stuck_for = lease.stuck_for
        self._database = database
        self._duration = duration
        self._leaving = leaving or threading.Event()
        self._lost = False
        self._renewed = time.monotonic()

    def check(self) -> None:
        """Nothing while the phase is to go on.

        Raises:
            LeaseLost: Someone else holds the run by now, or may.
            Interrupted: The process is to end.
        """
        # Sinks are outside of the database's transactions: without news of the lease nothing more is written to them.
        if self._lost or time.monotonic() - self._renewed > self._duration.total_seconds():
            raise LeaseLost(f"run {self.run.id} is held by someone else by now, or was cancelled")
        if self._leaving.is_set():
            raise Interrupted

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lease while the block runs."""
        # A thread for each run: where the row of one is locked for a while, as by a seal, others are renewed.
        over = threading.Event()
        thread = threading.Thread(target=self._renew, args=(over,), name=f"run {self.run.id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _renew(self, over: threading.Event) -> None:
        period = min(LOOK_SECONDS, self._duration.total_seconds() / 3)
        while not over.wait(period):
            asked = time.monotonic()
            try:
                with self._database.transaction() as connection:
                    self._lost = not runs.renew(connection, self.token, self._duration)
            except DatabaseUnavailable as error:
                log.warning("the lease of run %s was not renewed: %s", self.run.id, error)
            else:
                self._renewed = asked
