"""The thread that asks whether this worker still gets work, and ticks where nobody else does."""

import logging
import random
import threading
import time
from collections.abc import Callable

from contracts.errors import UnavailableError
from worker.serving import Process
from worker.vital import vital_thread

log = logging.getLogger(__name__)

MISSES = 3
"""A worker that was idle for so many ticks, each time beside work that it could have claimed, is cut off."""
TICKS_MISSED = 2.0
"""An idle worker that saw no tick for the time of so many sends itself one."""


class Watchdog:
    """Looks at the worker once a tick.

    Args:
        process: The worker.
        tick_seconds: How often beat sends a tick.
        tick: Carries one out.
        leave: Ends the process, for the reason given.
    """

    def __init__(
        self, process: Process, tick_seconds: float, tick: Callable[[], None], leave: Callable[[str], None]
    ) -> None:
        self._process = process
        self._tick_seconds = tick_seconds
        self._tick = tick
        self._leave = leave
        self._ticked_at = time.monotonic()
        self._misses = 0
        self._stopping = threading.Event()
        self._thread = vital_thread("watchdog", self._loop)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()

    def ticked(self) -> None:
        """Note that a tick came."""
        self._ticked_at = time.monotonic()

    def _loop(self) -> None:
        # Out of step with others: workers that were started together do not all tick at once.
        while not self._stopping.wait(self._tick_seconds * random.uniform(0.8, 1.2)):
            try:
                self.look()
            except UnavailableError as error:  # nobody gets work while the database is away
                log.warning("%s", error)
                self._misses = 0

    def look(self) -> None:
        """Tick if nobody does, and end the process if tickets do not reach it.

        Raises:
            UnavailableError: The database does not answer.
        """
        if self._process.idle and time.monotonic() - self._ticked_at > TICKS_MISSED * self._tick_seconds:
            self.ticked()
            self._tick()
        claimed_lately = time.monotonic() - self._process.claimed_at < self._tick_seconds
        self._misses = 0 if claimed_lately or not self._process.starves() else self._misses + 1
        if self._misses >= MISSES:
            self._leave(
                f"no ticket came for {self._misses} ticks, and there is work that this worker could claim: its "
                "connection to the broker is broken, so it ends and another takes over"
            )
