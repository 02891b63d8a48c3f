"""Threads without which a worker is of no use: when one dies of an error, the process ends with it.

It ends as if it had been killed: what died may have died of the work that it held, so that the leases are not given
back, but rescued and counted as a death.
"""

import logging
import os
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

log = logging.getLogger(__name__)


def vital_thread(name: str, loop: Callable[[], None]) -> threading.Thread:
    """A thread, not started yet, that runs the loop; whoever supervises the process starts another after its death."""

    def run() -> None:
        try:
            loop()
        except BaseException as error:
            # Where, and what kind: the message of an exception may quote an input or an output.
            where = "".join(traceback.format_tb(error.__traceback__))
            end_process(f"the {name} thread died of {type(error).__name__}:\n{where}")

    return threading.Thread(target=run, name=name, daemon=True)


def end_process(reason: str) -> NoReturn:
    """End this process at once, for whoever supervises it to start another; nothing of it gets to say more."""
    log.critical("%s; this worker ends, so that another takes over", reason.rstrip())
    logging.shutdown()
    os._exit(os.EX_SOFTWARE)
