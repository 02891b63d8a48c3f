"""How a worker lets go of leases, and wakes others for what is left; the same whatever its pool asks of it."""

import logging
from contextlib import suppress
from datetime import timedelta

from contracts.errors import BrokerUnavailable, DatabaseUnavailable
from storage import claims, control, shards
from storage.broker import Tickets
from storage.database import Database
from storage.shards import Lease
from worker.observing import WorkerMetrics

log = logging.getLogger(__name__)


class Leases:
    """Ends leases of a process.

    Args:
        database: Where they are.
        tickets: Wake others of its pool.
        metrics: Counts how leases end.
    """

    def __init__(self, database: Database, tickets: Tickets, metrics: WorkerMetrics) -> None:
        self._database = database
        self._tickets = tickets
        self._metrics = metrics

    def fail(self, lease: Lease, code: str, message: str) -> None:
        """Fail the job of a lease, where that still stands.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        with self._database.transaction() as connection:
            held = shards.held(connection, lease)
            if held and control.fail(connection, lease.job_id, code, message):
                log.error("job %s fails: %s", lease.job_id, message)
        self._metrics.lease_ended("failed" if held else "lost")

    def release(self, lease: Lease, rest: timedelta | None = None) -> None:
        """Give a lease back; its shard is not claimed again before it has rested.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        with self._database.transaction() as connection:
            released = shards.release(connection, [lease.token], rest)
        self._metrics.lease_ended("released" if released else "lost")

    def wake(self, pool: str, count: int) -> None:
        """Publish successor tickets while claimable work remains; those that are lost the tick makes up for."""
        with suppress(DatabaseUnavailable), self._database.transaction() as connection:
            if not claims.any_claimable(connection, pool):
                return
        try:
            self._tickets.publish(pool, count)
        except BrokerUnavailable as error:
            log.warning("%s; the next tick makes up for it", error)
