"""Retrying: a new job of the items for which a job that ended has no output."""

from uuid import UUID

from sqlalchemy import Connection, text

from contracts.errors import NothingToRetry
from storage import jobs

_OPEN = text("""
    INSERT INTO jobs (target_id, pool, state, priority, metadata, callback_url, endpoint_id, progress_at, retry_of)
    SELECT :target_id, pool, 'receiving', priority, metadata, callback_url, endpoint_id, progress_at, id
    FROM jobs WHERE id = :id
    RETURNING id
""")
_COPY = """
    INSERT INTO items (job_id, position, input_id, custom_id)
    SELECT :retry_id, row_number() OVER (ORDER BY position) - 1, input_id, custom_id
    FROM items
    WHERE job_id = :id AND {which}
    ORDER BY position
"""
# What a terminal job shows no output for: see `storage.pages.withheld`.
_MISSING = """
    SELECT input_id FROM item_errors WHERE job_id = :id
    UNION ALL
    SELECT unnest(input_ids) FROM shards WHERE job_id = :id AND state = 'cancelled'
"""
_COPY_ITEMS = text(_COPY.format(which=f"input_id IN ({_MISSING})"))
_COPY_ALL = text(_COPY.format(which=f"EXISTS ({_MISSING})"))


def find(connection: Connection, job_id: UUID) -> UUID | None:
    """The job that retries another, where it exists."""
    statement = text("SELECT id FROM jobs WHERE retry_of = :id")
    return connection.execute(statement, {"id": job_id}).scalar_one_or_none()


def receive(connection: Connection, job_id: UUID, target_id: int, *, whole: bool = False) -> UUID:
    """A new job, yet to be sealed, of the items of a job that have no output.

    Custom ids are kept, and the order; positions are counted from 0 again.

    Args:
        connection: In a transaction that holds the job's lock.
        job_id: A job that is terminal, and is retried by none yet.
        target_id: What the new job is to compute.
        whole: Take the items along that have an output, as the others mean nothing without them.

    Raises:
        NothingToRetry: All of its items have one.
    """
    retry_id: UUID = connection.execute(_OPEN, {"id": job_id, "target_id": target_id}).scalar_one()
    copy = _COPY_ALL if whole else _COPY_ITEMS
    lines = connection.execute(copy, {"id": job_id, "retry_id": retry_id}).rowcount
    if lines == 0:
        raise NothingToRetry(f"job {job_id} has an output for every item: there is nothing to retry")
    jobs.count_received(connection, retry_id, lines)
    return retry_id
