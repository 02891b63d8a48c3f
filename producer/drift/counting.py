"""What is different from the run before, in rows."""

from uuid import UUID

from sqlalchemy import Connection

from contracts.errors import WrongState
from contracts.runs import Changes, RunInfo
from storage import comparing, jobs


def changes(connection: Connection, run: RunInfo, before: RunInfo | None) -> Changes:
    """Count the rows of a run that are new, changed and removed since another; linear in the rows of both.

    Args:
        connection: In a transaction.
        run: A run whose job is terminal.
        before: What it is compared with; None, or one whose job a purge removed, leaves every row new.

    Raises:
        WrongState: The run has no job.
    """
    counts = jobs.get(connection, _job(run)).counts
    new, changed, removed = counts.items, 0, 0
    since = None
    # Held: rows that a purge removes meanwhile would be told as new.
    if before is not None and before.job_id is not None and comparing.hold(connection, before.job_id):
        new, changed, removed = comparing.count_changes(connection, _job(run), before.job_id)
        since = before.id
    return Changes(
        rows=counts.items,
        new=new,
        changed=changed,
        removed=removed,
        cached=counts.cached,
        computed=counts.computed,
        failed=comparing.count_failed_rows(connection, _job(run)) if counts.failed else 0,
        bad=run.progress.bad,
        since=since,
    )


def _job(run: RunInfo) -> UUID:
    if run.job_id is None:
        raise WrongState(f"run {run.id} is {run.state} and has no job whose rows could be compared")
    return run.job_id
