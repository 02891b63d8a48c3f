"""Runs that are older than they need be, and those whose caller never came back for them."""

from datetime import timedelta

from sqlalchemy import Connection, text

from storage.database import Database

NEEDED = """
    (runs.state IN ('queued', 'reading', 'scoring', 'writing')
     OR runs.schedule_id IS NOT NULL AND runs.state = 'succeeded' AND NOT EXISTS (
        SELECT FROM runs AS later
        WHERE later.schedule_id = runs.schedule_id AND later.state = 'succeeded' AND later.due_at > runs.due_at))
"""
"""Which runs are kept, however old, and their jobs: an open one, and the one that the next is compared with."""

_OLD = f"""
    runs.finished_at < now() - CAST(:age AS interval) AND NOT {NEEDED}
    AND NOT EXISTS (SELECT FROM deliveries WHERE deliveries.run_id = runs.id AND deliveries.state = 'pending')
"""
_COUNT = text(f"SELECT count(*) FROM runs WHERE {_OLD}")
_DELETE = text(f"""
    DELETE FROM runs WHERE id IN (
        SELECT id FROM runs WHERE {_OLD} ORDER BY finished_at LIMIT 1000 FOR UPDATE OF runs SKIP LOCKED)
""")
# Of a schedule a runner goes on with it; of a caller's own only the caller does.
_GIVE_UP = text("""
    UPDATE runs SET state = 'cancelled', token = NULL, lease_expires_at = NULL, finished_at = now(),
                    error_code = 'abandoned', error_message = 'nobody resumed it'
    WHERE schedule_id IS NULL AND state IN ('reading', 'scoring', 'writing')
      AND created_at < now() - CAST(:age AS interval)
      AND coalesce(lease_expires_at, created_at) < now() - CAST(:age AS interval)
      AND NOT EXISTS (
        SELECT FROM jobs WHERE jobs.id = runs.job_id
        AND (jobs.state IN ('queued', 'running', 'paused') OR jobs.finished_at >= now() - CAST(:age AS interval)))
""")


def count(connection: Connection, age: timedelta | None) -> int:
    """How many runs `delete` would remove."""
    return int(connection.execute(_COUNT, {"age": age}).scalar_one())


def delete(database: Database, age: timedelta | None) -> int:
    """Remove runs that ended longer ago than that, in small transactions; how many.

    A caller's own that nobody has gone on with for so long is cancelled before, and ages from there.
    """
    with database.transaction() as connection:
        connection.execute(_GIVE_UP, {"age": age})
    deleted = 0
    while True:
        with database.transaction() as connection:
            gone = connection.execute(_DELETE, {"age": age}).rowcount
        if gone == 0:
            return deleted
        deleted += gone
