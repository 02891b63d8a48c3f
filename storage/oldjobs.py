"""Terminal jobs that are older than they need be: the row first, then what it leaves behind.

A reader finds a job whole or not at all: each page of results is read in one statement that asks for the job's row as
well. What a purge that died leaves are items without a job, which no one sees and the next one removes.
"""

from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from storage import oldruns
from storage.database import Database

ROWS = 20_000
"""What one transaction deletes, about."""

EXPIRED = (
    """
    jobs.state IN ('succeeded', 'failed', 'cancelled', 'expired')
    AND jobs.created_at < now() - {age} AND jobs.finished_at < now() - {age}
    AND NOT EXISTS (SELECT FROM deliveries WHERE deliveries.job_id = jobs.id AND deliveries.state = 'pending')
    AND NOT EXISTS (
        SELECT FROM compressions JOIN jobs AS taught ON taught.id = compressions.job_id,
            jsonb_each_text(compressions.teachers) AS teacher
        WHERE taught.state NOT IN ('succeeded', 'failed', 'cancelled', 'expired') AND teacher.value = jobs.id::text)
"""
    f" AND NOT EXISTS (SELECT FROM runs WHERE runs.job_id = jobs.id AND {oldruns.NEEDED})"
)
"""Which jobs may go, given an age: none while someone is yet to hear of it, none that a compression still learns from,
none of a run that is open or that its schedule's next is compared with, and none where the age is null."""

_OLD = EXPIRED.format(age="CAST(:age AS interval)")
_COUNT = text(f"SELECT count(*), coalesce(sum(items), 0) FROM jobs WHERE {_OLD}")

# Errors and shards go with the row; a shard holds some hundreds of inputs.
_NO_LIMIT = text("SET LOCAL transaction_timeout = 0")
_DELETE = text(f"""
    WITH oldest AS (
        SELECT id, created_at, 1 + failed + distinct_inputs / 64 AS rows FROM jobs
        WHERE {_OLD} ORDER BY created_at, id LIMIT 500
    ), weighed AS (
        SELECT id, sum(rows) OVER (ORDER BY created_at, id) - rows AS before FROM oldest
    ), chosen AS (
        SELECT id FROM jobs WHERE id IN (SELECT id FROM weighed WHERE before < :most) FOR UPDATE SKIP LOCKED
    )
    DELETE FROM jobs WHERE id IN (SELECT id FROM chosen)
""")

# A walk from job to job along the primary key, as reading every item would take long.
_ORPHANS = text("""
    WITH RECURSIVE holder AS (
        (SELECT job_id FROM items ORDER BY job_id LIMIT 1)
        UNION ALL
        SELECT (SELECT items.job_id FROM items WHERE items.job_id > holder.job_id ORDER BY items.job_id LIMIT 1)
        FROM holder WHERE holder.job_id IS NOT NULL
    )
    SELECT job_id FROM holder
    WHERE job_id IS NOT NULL AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = holder.job_id)
""")
_POSITIONS = text("SELECT min(position), max(position) FROM items WHERE job_id = :id")
_DELETE_ITEMS = text("DELETE FROM items WHERE job_id = :id AND position >= :start AND position < :stop")


def count(connection: Connection, age: timedelta | None) -> tuple[int, int]:
    """How many jobs `delete` would remove, and how many items they have."""
    jobs, items = connection.execute(_COUNT, {"age": age}).one()
    return int(jobs), int(items)


def delete(database: Database, age: timedelta | None) -> int:
    """Remove jobs that ended longer ago than that, in small transactions; how many.

    Their items are left to `delete_orphans`. Jobs that retry them, and runs of schedules, forget them.
    """
    deleted = 0
    while True:
        with database.transaction() as connection:
            connection.execute(_NO_LIMIT)  # one job may have millions of errors; nobody waits for the locks
            count = connection.execute(_DELETE, {"age": age, "most": ROWS}).rowcount
        if count == 0:
            return deleted
        deleted += count


def delete_orphans(database: Database) -> int:
    """Remove items whose job is gone, in small transactions; how many."""
    with database.transaction() as connection:
        orphans: list[UUID] = list(connection.execute(_ORPHANS).scalars())
    return sum(delete_items(database, job_id) for job_id in orphans)


def delete_items(database: Database, job_id: UUID) -> int:
    """Remove the items of a job that is gone, in small transactions; how many."""
    return sum(_delete_slice(database, job_id, start) for start in _starts(database, job_id))


def _starts(database: Database, job_id: UUID) -> Iterator[int]:
    with database.transaction() as connection:
        first, last = connection.execute(_POSITIONS, {"id": job_id}).one()
    return iter(() if first is None else range(first, last + 1, ROWS))


def _delete_slice(database: Database, job_id: UUID, start: int) -> int:
    with database.transaction() as connection:
        return connection.execute(_DELETE_ITEMS, {"id": job_id, "start": start, "stop": start + ROWS}).rowcount
