"""Runs whose process died: their leases are over, and one that no process lives through fails."""

from uuid import UUID

from sqlalchemy import Connection, text

from contracts.events import Event
from storage import events, runs
from storage.runs import HELD, LOST, MOST_DEATHS

_RESCUE = text(f"""
    UPDATE runs SET lease_expires_at = now()
    WHERE starts_with(runner, :process || ':') AND token IS NOT NULL AND {HELD}
""")
_FAIL = text(f"""
    UPDATE runs SET state = 'failed', token = NULL, lease_expires_at = NULL, finished_at = now(), written = NULL,
                    error_code = 'runner_lost', error_message = :message
    WHERE {HELD} AND lease_expires_at < now() AND deaths >= :most_deaths RETURNING id
""")


def rescue(connection: Connection, process: str) -> int:
    """Let the leases be over of a process `host:pid` that is known to have died; how many these are."""
    return connection.execute(_RESCUE, {"process": process}).rowcount


def fail(connection: Connection) -> list[UUID]:
    """Reading, writing -> failed, of runs that cost one process after the other its life; which these are."""
    message = f"{LOST}; their logs may say of what"
    failed = list(connection.execute(_FAIL, {"message": message, "most_deaths": MOST_DEATHS}).scalars())
    for run_id in failed:
        events.announce_run(connection, runs.get(connection, run_id), Event.RUN_FAILED)
    return failed
