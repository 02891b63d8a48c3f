"""The purge that a tick starts: on a thread of its own, since it may take longer than a slot should be held."""

import logging
import threading
from datetime import timedelta

from contracts.errors import UnavailableError
from contracts.settings import Settings
from storage import chores, retention
from storage.database import Database
from storage.retention import Retention

log = logging.getLogger(__name__)

CHORE = "purge"


def purge_when_due(settings: Settings, database: Database) -> threading.Thread | None:
    """Begin a purge when its time has come, and no other worker began it; the thread that runs it.

    It ends with the process, wherever it is: another one goes on from there.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    with database.transaction() as connection:
        if not chores.take_turn(connection, CHORE, timedelta(hours=settings.purge_hours)):
            return None
    days = Retention.of_days(settings.retain_jobs_days, settings.retain_results_days)
    thread = threading.Thread(target=_purge, args=(database, days), name="purge", daemon=True)
    thread.start()
    return thread


def _purge(database: Database, how: Retention) -> None:
    try:
        gone = retention.purge(database, how)
    except UnavailableError as error:
        log.warning("the purge was cut short, and the next one goes on: %s", error)
    except Exception:  # a worker is of use without purges
        log.exception("the purge failed")
    else:
        if any(vars(gone).values()):
            log.info(
                "purged %d jobs with %d items, %d runs, %d results, %d inputs",
                *(gone.jobs, gone.items, gone.runs, gone.results, gone.inputs),
            )
