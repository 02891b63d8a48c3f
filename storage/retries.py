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
# What a terminal job shows no output for: see `storage.pages.withheld`.
_COPY_ITEMS = text("""
    INSERT INTO items (job_id, position, input_id, custom_id)
    SELECT :retry_id, row_number() OVER (ORDER BY position) - 1, input_id, custom_id
    FROM items
    WHERE job_id = :id AND input_id IN (
        SELECT input_id FROM item_errors WHERE job_id = :id
        UNION ALL
        SELECT unnest(input_ids) FROM shards WHERE job_id = :id AND state = 'cancelled')
    ORDER BY position
""")


def find(connection: Connection, job_id: UUID) -> UUID | None:
    """The job that retries another, where it exists."""
    statement = text("SELECT id FROM jobs WHERE retry_of = :id")
    return connection.execute(statement, {"id": job_id}).scalar_one_or_none()


def receive(connection: Connection, job_id: UUID, target_id: int) -> UUID:
    """A new job, yet to be sealed, of the items of a job that have no output.

    Custom ids are kept, and the order; positions are counted from 0 again.

    Args:
        connection: In a transaction that holds the job's lock.
        job_id: A job that is terminal, and is retried by none yet.
        target_id: What the new job is to compute.

    Raises:
        NothingToRetry: All of its items have one.
    """
    retry_id: UUID = connection.execute(_OPEN, {"id": job_id, "target_id": target_id}).scalar_one()
    lines = connection.execute(_COPY_ITEMS, {"id": job_id, "retry_id": retry_id}).rowcount
    if lines == 0:
        raise NothingToRetry(f"job {job_id} has an output for every item: there is nothing to retry")
    jobs.count_received(connection, retry_id, lines)
    return retry_id
