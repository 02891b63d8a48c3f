"""The thread that has models measured anew where somebody asked for it."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError

from contracts.errors import ArtifactError, DatabaseUnavailable, ModelError
from contracts.models import ModelSpec
from storage import models, plans
from storage.database import Database

log = logging.getLogger(__name__)

PERIOD = 2.0
"""Seconds between two looks at what is asked."""


class Measurer:
    """Looks now and then whether a model of the pool is to be measured anew on this kind of device.

    Args:
        database: Where that is asked.
        pool: The worker's.
        device: Its kind.
        measure: Loads a model anew and measures it.
    """

    def __init__(self, database: Database, pool: str, device: str, measure: Callable[[ModelSpec], None]) -> None:
        self._database = database
        self._pool = pool
        self._device = device
        self._measure = measure
        self._failed: set[int] = set()
        """Models that cannot be measured here: they are not tried again, their jobs say why."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="measurer", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def drain(self) -> None:
        """Begin nothing new."""
        self._stopping.set()

    def stop(self) -> None:
        """End."""
        self.drain()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopping.wait(PERIOD):
            try:
                self._look()
            except DatabaseUnavailable as error:
                log.debug("nobody can ask for a measurement: %s", error)
            except CancelledError:  # the process ends
                return

    def _look(self) -> None:
        with self._database.transaction() as connection:
            found = plans.asked(connection, self._pool, self._device)
            asked = [models.by_id(connection, model_id) for model_id in found if model_id not in self._failed]
        for model in asked:
            if self._stopping.is_set():
                return
            log.info("%s is measured anew, as it was asked for", model.reference)
            try:
                self._measure(model)
            except (ModelError, ArtifactError) as error:
                log.warning("%s cannot be measured: %s", model.reference, error)
                self._failed.add(model.id)
