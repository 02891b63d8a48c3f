"""Threads without which a worker is of no use: when one dies of an error, the process ends, its leases given back."""

import logging
import os
import signal
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


def vital_thread(name: str, loop: Callable[[], None]) -> threading.Thread:
    """A thread, not started yet, that runs the loop; whoever supervises the process starts another after its death."""

    def run() -> None:
        try:
            loop()
        except BaseException:
            log.critical("the %s thread died: this worker ends, so that another takes over", name, exc_info=True)
            os.kill(os.getpid(), signal.SIGTERM)

    return threading.Thread(target=run, name=name, daemon=True)
