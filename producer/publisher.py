"""How workers hear that there is work: tickets, which may be lost, as the tick makes up for them."""

import logging
from functools import cached_property
from typing import TYPE_CHECKING
from uuid import UUID

from contracts.errors import BrokerUnavailable
from contracts.settings import Settings

if TYPE_CHECKING:
    from storage.broker import Tickets

log = logging.getLogger(__name__)


class Publisher:
    """Publishes tickets; the broker is looked at when there are any to publish."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.window = settings.ticket_window

    @cached_property
    def _tickets(self) -> "Tickets":
        # Made when it is first needed: Celery takes a while to import, and many clients only look at jobs.
        from storage.broker import Tickets

        return Tickets(str(self._settings.broker_url))

    def prepare(self) -> None:
        """Refuse what is no broker's address, before anything is stored.

        Raises:
            ConfigurationError: It is none.
        """
        _ = self._tickets

    def wake(self, job_id: UUID, pool: str, shards: int) -> None:
        """Wake workers of a pool for shards of a job."""
        if not shards:
            return
        try:
            self._tickets.top_up(pool, shards, self.window)
        except BrokerUnavailable as error:
            log.warning("job %s is kept and goes out when the broker is back: %s", job_id, error)

    def close(self) -> None:
        """Give connections back."""
        if "_tickets" in vars(self):
            self._tickets.close()
