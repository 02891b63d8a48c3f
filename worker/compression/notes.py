"""How far a step is, noted in the database for whoever looks."""

import logging
import time

from sqlalchemy.exc import SQLAlchemyError

from contracts.compression import StepProgress
from contracts.errors import DatabaseUnavailable
from storage import compressions
from storage.database import Database
from storage.shards import Lease

log = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds at least between two notes of one step."""
SURE = 0.02
"""The share of a step after which what is left of it is reckoned."""


class ProgressNotes:
    """Notes of one compression; what cannot be written now is left out.

    Args:
        database: Where the row is.
        lease: Whose the notes are: once it is lost, nothing is written.
    """

    def __init__(self, database: Database, lease: Lease) -> None:
        self._database = database
        self._lease = lease
        self._position, self._title = 0, ""
        self._began = self._noted = 0.0

    def begin(self, position: int, title: str) -> None:
        """A step begins."""
        self._position, self._title = position, title
        self._began, self._noted = time.monotonic(), 0.0
        self.note(0.0, "")
        self._noted = 0.0  # the first that it says itself is not too soon

    def note(self, fraction: float, message: str) -> None:
        """The step is so far, 0 to 1; one that comes too soon after the last is not written."""
        now = time.monotonic()
        if now - self._noted < PERIOD:
            return
        self._noted = now
        spent = now - self._began
        progress = StepProgress(
            position=self._position,
            title=self._title,
            fraction=fraction,
            seconds_left=spent * (1 - fraction) / fraction if fraction >= SURE else None,
            message=message,
        )
        try:
            with self._database.transaction() as connection:
                compressions.note_progress(connection, self._lease, progress)
        except (DatabaseUnavailable, SQLAlchemyError) as error:  # nothing depends on it
            log.debug("no progress was noted: %s", error)
