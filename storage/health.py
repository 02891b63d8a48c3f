"""Whether a worker, a runner, a deliverer or beat is alive and does its work."""

import threading
import time
from collections.abc import Callable
from enum import StrEnum

from contracts.errors import BatchmillError
from storage import schema
from storage.database import Database
from storage.probes import Verdict

VITAL = ("device", "persister", "heartbeat")
"""The threads without which a worker does nothing; should one die of an error, the process ends by itself."""
COMPRESSING = ("heartbeat",)
"""The same, of a worker that compresses: subprocesses do its work."""


class Stage(StrEnum):
    """How far a process has come."""

    STARTING = "starting"
    WORKING = "working"
    """It takes tickets, or looks for runs or deliveries."""
    LEAVING = "leaving"
    """It claims nothing new, and ends soon."""


class Health:
    """What the probes of a process are told.

    Args:
        database: Without which nothing is done.
        vital: Names of the threads that must live while it works.
    """

    def __init__(self, database: Database, vital: tuple[str, ...] = ()) -> None:
        self._database = database
        self._vital = vital
        self._busy: Callable[[], float] = lambda: 0.0
        self._stall_seconds = float("inf")
        self._ticked_at: float | None = None
        self.stage = Stage.STARTING

    def watch(self, busy: Callable[[], float], stall_seconds: float) -> None:
        """Take the device into account: for how long it is busy with one pass, and how long is too long."""
        self._busy, self._stall_seconds = busy, stall_seconds

    def ticked(self) -> None:
        """Note that a tick came."""
        self._ticked_at = time.monotonic()

    def alive(self) -> Verdict:
        """False once a vital thread is gone, or a pass has not ended for too long."""
        running = {thread.name for thread in threading.enumerate()}
        dead = [] if self.stage is not Stage.WORKING else [name for name in self._vital if name not in running]
        busy = self._busy()
        details = {
            "stage": self.stage.value,
            "dead_threads": dead,
            "pass_seconds": round(busy, 1),
            "last_tick_seconds": None if self._ticked_at is None else round(time.monotonic() - self._ticked_at, 1),
        }
        return Verdict(not dead and busy <= self._stall_seconds, details)

    def ready(self) -> Verdict:
        """True while it works, and the database answers and has the right schema."""
        trouble = None
        if self.stage is Stage.WORKING:
            try:
                with self._database.transaction() as connection:
                    schema.check(connection)
            except BatchmillError as error:
                trouble = error.code
        return Verdict(self.stage is Stage.WORKING and trouble is None, {"stage": self.stage.value, "trouble": trouble})


class Pulse:
    """What the probes of beat are told: whether it sends ticks.

    Args:
        period: Seconds from one tick to the next.
    """

    PERIODS = 3
    """It may miss a tick, or two; the first has as long."""

    def __init__(self, period: float) -> None:
        self._patience = self.PERIODS * period
        self._started_at = time.monotonic()
        self._sent_at: float | None = None

    def beat(self) -> None:
        """Note that the broker took a tick."""
        self._sent_at = time.monotonic()

    def alive(self) -> Verdict:
        """False once no tick was sent for three periods."""
        return self._verdict(self._sent_at or self._started_at)

    def ready(self) -> Verdict:
        """True once a tick was sent, and while the last one is no older than three periods."""
        return self._verdict(self._sent_at)

    def _verdict(self, since: float | None) -> Verdict:
        now, sent_at = time.monotonic(), self._sent_at
        details = {"last_tick_seconds": None if sent_at is None else round(now - sent_at, 1)}
        return Verdict(since is not None and now - since <= self._patience, details)
