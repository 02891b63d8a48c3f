"""The thread that renews leases, and notices those that were lost."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID

from contracts.errors import DatabaseUnavailable
from storage import shards
from storage.database import Database
from storage.shards import Lease
from worker.device import Device
from worker.vital import vital_thread

log = logging.getLogger(__name__)


class Heartbeat:
    """Renews the leases that the process holds, three times in the life of one."""

    def __init__(self, database: Database, device: Device, lease: timedelta) -> None:
        self._database = database
        self._device = device
        self._lease = lease
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
        while not self._stopping.wait(self._lease.total_seconds() / 3):
            with self._lock:
                tokens = list(self._tokens)
            try:
                self._renew(tokens)
            except DatabaseUnavailable as error:
                log.warning("leases were not renewed: %s", error)

    def _renew(self, tokens: list[UUID]) -> None:
        if not tokens:
            return
        with self._database.transaction() as connection:
            valid = shards.renew(connection, tokens, self._lease)
        lost = set(tokens) - valid
        if lost:
            # Some were closed meanwhile; the device knows only those that are still being worked on.
            self._device.abandon(lambda shard: shard.lease.token in lost)
