"""What a tick does: schedules begin runs, what is over expires, what nobody wants goes, tickets are topped up."""

import logging
from collections.abc import Callable
from datetime import timedelta

from contracts.errors import BatchmillError
from contracts.settings import Settings
from storage import claims, control, jobs, lostruns, oldjobs, rescue, schedules
from storage.broker import Tickets
from storage.database import Database
from worker.purging import purge_when_due

log = logging.getLogger(__name__)


def tick(
    settings: Settings, database: Database, tickets: Tickets, rescued: Callable[[int], None] = lambda _: None
) -> None:
    """Carry out what is due; any number of ticks, from any number of workers at once, is harmless.

    What cannot be done now is logged and left to the next tick, and holds up nothing else.

    Args:
        settings: Say when things are due.
        database: Where they are.
        tickets: Wake workers.
        rescued: Told how many leases went back to the queue.
    """
    steps: tuple[Callable[[], object], ...] = (
        lambda: top_up(settings, database, tickets),
        lambda: rescued(free_leases(database)),
        lambda: expire_jobs(database),
        lambda: make_runs(database),
        lambda: fail_lost_runs(database),
        lambda: remove_abandoned(settings, database),
        lambda: purge_when_due(settings, database),
    )
    for step in steps:
        try:
            step()
        except BatchmillError as error:
            log.warning("tick: %s", error)
        except Exception:  # a defect of one step: the others are due all the same
            log.exception("tick: a step failed, for a reason that nobody thought of")


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


def free_leases(database: Database) -> int:
    """Let expired leases go back to the queue; how many there were.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    if rescued := rescue.rescue(database):
        log.warning("%d leases expired: their workers are dead, or cut off", len(rescued))
    return len(rescued)


def expire_jobs(database: Database) -> None:
    """End jobs whose time is over, one a transaction, as each may have many shards.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    expired = True
    while expired:
        with database.transaction() as connection:
            expired = bool(ended := control.expire_due(connection, most=1))
        for job_id in ended:
            log.warning("job %s expired: it was not done in its time", job_id)


def make_runs(database: Database) -> None:
    """Make the runs of schedules that are due; runners carry them out.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    if made := schedules.make_due(database):
        log.info("%d runs of schedules are due", len(made))


def fail_lost_runs(database: Database) -> None:
    """End runs that no process lives through.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    with database.transaction() as connection:
        lost = lostruns.fail(connection)
    for run_id in lost:
        log.error("run %s failed: the processes that carried it out died", run_id)


def remove_abandoned(settings: Settings, database: Database) -> None:
    """Remove what clients sent that died before they were done.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    with database.transaction() as connection:
        abandoned = jobs.discard_abandoned(connection, timedelta(seconds=settings.abandon_seconds))
    for job_id in abandoned:
        log.warning("job %s was removed: its client stopped sending", job_id)
        oldjobs.delete_items(database, job_id)
