"""Retention: jobs and runs that ended long ago go, then results and inputs that no remaining job refers to.

The order of the steps is what makes each of them safe: a job's row goes before its items, items before what they refer
to. A purge may end anywhere, and several may run at once.
"""

from dataclasses import dataclass
from datetime import timedelta

from storage import oldjobs, oldruns, unused
from storage.database import Database


@dataclass(frozen=True)
class Retention:
    """How long things are kept; for ever where it is None."""

    jobs: timedelta | None
    """After the job, or the run, ended."""
    results: timedelta | None
    """Results and inputs to which no job refers, from when they came into being."""

    @classmethod
    def of_days(cls, jobs: float, results: float) -> "Retention":
        """As the settings have it: in days, and 0 for ever."""
        return cls(jobs=timedelta(days=jobs) if jobs else None, results=timedelta(days=results) if results else None)


@dataclass(frozen=True)
class Purged:
    """What a purge removed, or would."""

    jobs: int
    items: int
    runs: int
    results: int
    inputs: int


def purge(database: Database, retention: Retention) -> Purged:
    """Remove what is older than it need be, in small transactions.

    Raises:
        DatabaseBusy: Another purge is under way, or submissions leave no gap; the next one goes on.
        DatabaseUnavailable: Postgres does not answer.
    """
    jobs = oldjobs.delete(database, retention.jobs)
    runs = oldruns.delete(database, retention.jobs)
    items = oldjobs.delete_orphans(database)
    results = inputs = 0
    if retention.results is not None:
        results = unused.delete_results(database, retention.results)
        inputs = unused.delete_inputs(database, retention.results)
    return Purged(jobs, items, runs, results, inputs)


def preview(database: Database, retention: Retention) -> Purged:
    """What a purge would remove now.

    Raises:
        DatabaseBusy: A purge is under way.
        DatabaseUnavailable: Postgres does not answer.
    """
    with database.transaction() as connection:
        jobs, items = oldjobs.count(connection, retention.jobs)
        runs = oldruns.count(connection, retention.jobs)
        results, inputs = unused.count(connection, retention.jobs, retention.results)
    return Purged(jobs, items, runs, results, inputs)
