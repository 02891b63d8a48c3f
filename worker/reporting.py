"""The thread that says now and then how the worker is, for `batchmill top` and whoever else looks at the table."""

import logging
import threading
from collections.abc import Callable

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from contracts.errors import DatabaseUnavailable
from storage import workers
from storage.database import Database
from storage.workers import WorkerReport

log = logging.getLogger(__name__)

PERIOD = 2.0
"""Seconds between two reports."""


class Reporter:
    """Keeps the worker's row in `workers` up to date; nothing depends on it.

    Args:
        database: Where the row is.
        look: Says how the worker is.
    """

    def __init__(self, database: Database, look: Callable[[], WorkerReport]) -> None:
        self._database = database
        self._look = look
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="reporter", daemon=True)

    def start(self) -> None:
        """Begin to report; workers that were not heard of for long are taken off the list."""
        self._try(lambda connection: workers.forget(connection, self._look().name))
        self._thread.start()

    def stop(self) -> None:
        """End, and take the worker off the list."""
        self._stopping.set()
        self._thread.join()
        self._try(lambda connection: workers.forget(connection, self._look().name))

    def _loop(self) -> None:
        while True:
            self._try(lambda connection: workers.report(connection, self._look()))
            if self._stopping.wait(PERIOD):
                return

    def _try(self, write: Callable[[Connection], None]) -> None:
        try:
            with self._database.transaction() as connection:
                write(connection)
        except (DatabaseUnavailable, SQLAlchemyError) as error:  # a role that may not write there is one of them
            log.debug("no report: %s", error)
