"""Transactions of a compression, which outlast an outage of Postgres for as long as a lease lasts."""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import Connection

from storage.database import Database
from worker.serving import patiently

log = logging.getLogger(__name__)
T = TypeVar("T")


class PatientDatabase:
    """A database that is asked again while it is away: an outage is not the death of whoever asks.

    Args:
        database: Where everything is.
        lease: How long a lease lasts, and how long is waited.
        leaving: Set when the process is to end: then nothing is waited for.
    """

    def __init__(self, database: Database, lease: timedelta, leaving: threading.Event) -> None:
        self._database = database
        self._lease = lease
        self._leaving = leaving

    def transact(self, function: Callable[[Connection], T]) -> T:
        """What the function gives in a transaction of its own; it may be called several times.

        Raises:
            DatabaseUnavailable: Postgres has been away for as long as a lease lasts, or the process is to end.
        """

        def once() -> T:
            with self._database.transaction() as connection:
                return function(connection)

        return patiently(once, self._lease, self._leaving, log)
