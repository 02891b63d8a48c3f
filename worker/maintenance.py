"""What a tick does: leases and jobs expire, dead submissions are removed, a purge begins, tickets are topped up."""

import logging
from datetime import timedelta

from contracts.settings import Settings
from storage import claims, control, jobs, rescue
from storage.broker import Tickets
from storage.database import Database
from worker.purging import purge_when_due

log = logging.getLogger(__name__)


def tick(settings: Settings, database: Database, tickets: Tickets) -> None:
    """Carry out what is due; any number of ticks, from any number of workers at once, is harmless.

    Raises:
        UnavailableError: The database or the broker does not answer; the next tick tries again.
    """
    if rescued := rescue.rescue(database):
        log.warning("%d leases expired: their workers are dead, or cut off", len(rescued))
    with database.transaction() as connection:
        for job_id in control.expire_due(connection):
            log.warning("job %s expired: it was not done in its time", job_id)
    with database.transaction() as connection:
        for job_id in jobs.discard_abandoned(connection, timedelta(seconds=settings.abandon_seconds)):
            log.warning("job %s was removed: its client stopped sending", job_id)
    purge_when_due(settings, database)
    top_up(settings, database, tickets)


def top_up(settings: Settings, database: Database, tickets: Tickets) -> None:
    """Make up for tickets that were lost.

    Raises:
        UnavailableError: The database or the broker does not answer.
    """
    with database.transaction() as connection:
        claimable = claims.claimable(connection, settings.ticket_window)
    for pool, count in claimable.items():
        if published := tickets.top_up(pool, count, settings.ticket_window):
            log.info("%d tickets for pool %s", published, pool)
