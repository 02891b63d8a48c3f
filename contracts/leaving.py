"""How a process ends: asked from outside or by itself, and in time."""

import logging
import os
import signal
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

SECONDS = 16.0
"""A process that was asked to end is gone after so long, whatever it is busy with; others expect 30."""
LAST_SECONDS = 3.0
"""What it then takes at most to give back what it holds."""
CUT_OFF = 75
"""The exit code of a worker that ends itself so that another takes over: EX_TEMPFAIL of sysexits.h."""


class Departure:
    """The end of one process."""

    def __init__(self) -> None:
        self.exit_code = 0

    def ask(self, reason: str) -> None:
        """End this process in order, as SIGTERM would, with an exit code that says that it did so by itself."""
        log.critical("%s", reason)
        self.exit_code = CUT_OFF
        os.kill(os.getpid(), signal.SIGTERM)

    def begin(self, give_back: Callable[[], None]) -> None:
        """From now on the process has so many seconds; after that its leases are given back, and it ends."""

        def force() -> None:
            log.warning("it has not ended for %.0f s: what it holds is given back, and this process ends", SECONDS)
            # On a thread of its own: a database that does not answer must not hold it up either.
            giving = threading.Thread(target=self._give_back, args=(give_back,), daemon=True)
            giving.start()
            giving.join(LAST_SECONDS)
            os._exit(self.exit_code)

        timer = threading.Timer(SECONDS, force)
        timer.daemon = True
        timer.start()

    @staticmethod
    def _give_back(give_back: Callable[[], None]) -> None:
        try:
            give_back()
        except Exception as error:  # whatever it is, the process ends
            log.warning("leases are left to expire: %s", error)
