"""The thread that renews leases, notices those that were lost, and a device that is stuck."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID

from contracts.errors import DatabaseUnavailable
from storage import shards
from storage.database import Database
from storage.shards import Lease
from worker.vital import end_process, vital_thread

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often it looks whether leases are still valid: a job that was cancelled stops within so long."""


class Heartbeat:
    """Renews the leases that the process holds, three times in the life of one.

    Args:
        database: Where the leases are.
        lease: How long a lease lasts.
        lost: Told the tokens of leases that were lost, each time that it looks.
        stalled_for: Says for how many seconds the device is busy with one pass.
        stall_seconds: A pass that takes longer ends the process.
    """

    def __init__(
        self,
        database: Database,
        lease: timedelta,
        lost: Callable[[set[UUID]], None],
        stalled_for: Callable[[], float] = lambda: 0.0,
        stall_seconds: float = math.inf,
    ) -> None:
        self._database = database
        self._lease = lease
        self._lost = lost
        self._stalled_for = stalled_for
        self._stall_seconds = stall_seconds
        self._tokens: set[UUID] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = vital_thread("heartbeat", self._loop)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self._thread.join()

    @contextmanager
    def keeping(self, lease: Lease) -> Iterator[None]:
        """Renew the lease while the block runs."""
        with self._lock:
            self._tokens.add(lease.token)
        try:
            yield
        finally:
            with self._lock:
                self._tokens.discard(lease.token)

    def _loop(self) -> None:
        period = self._lease.total_seconds() / 3
        renewed = time.monotonic()
        while not self._stopping.wait(min(LOOK_SECONDS, period)):
            if self._stalled_for() > self._stall_seconds:
                end_process(f"a micro-batch has not ended for {self._stall_seconds:g} s")
            due = time.monotonic() - renewed >= 0.9 * period
            try:
                self._look(renew=due)
            except DatabaseUnavailable as error:
                log.warning("leases were not renewed: %s", error)
            else:
                renewed = time.monotonic() if due else renewed

    def _look(self, *, renew: bool) -> None:
        with self._lock:
            tokens = list(self._tokens)
        if not tokens:
            return
        with self._database.transaction() as connection:
            valid = shards.renew(connection, tokens, self._lease) if renew else shards.valid(connection, tokens)
        if lost := set(tokens) - valid:
            self._lost(lost)
