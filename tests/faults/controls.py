"""The negative controls: each takes one safeguard out of the suite's own processes or database, never of the code.

The checker has to fail on the invariant that the safeguard keeps; a control that does not fail is a defect of the
suite.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

from sqlalchemy import text

from storage import control, events, shards
from worker import maintenance
from worker.leases import Leases


def _unfenced() -> None:
    """A shard is closed, and a lease renewed, by whoever believes to hold it."""
    fenced = shards.close

    def close(connection: Any, lease: Any, outcome: Any) -> bool:
        stolen = {"id": lease.shard_id, "token": uuid4()}
        connection.execute(text("UPDATE shards SET state = 'leased', token = :token WHERE id = :id"), stolen)
        return fenced(connection, replace(lease, token=stolen["token"]), outcome)

    shards.close = close
    shards.renew = lambda connection, tokens, lease: set(tokens)
    shards.valid = lambda connection, tokens: set(tokens)


def _announced_later() -> None:
    """Events are written once the transaction that makes them true is committed."""
    late: list[tuple[Any, ...]] = []
    announce = events.announce
    wake = Leases.wake

    def afterwards(leases: Any, *arguments: Any) -> None:
        while late:
            with leases._database.transaction() as connection:
                announce(connection, *late.pop())
        wake(leases, *arguments)

    events.announce = lambda connection, *arguments: late.append(arguments)
    Leases.wake = afterwards


def _no_top_up() -> None:
    """A tick publishes no ticket."""
    maintenance.top_up = lambda *arguments: None


CONTROLS: dict[str, Callable[[], None]] = {
    "unfenced": _unfenced,
    "announced_later": _announced_later,
    "no_top_up": _no_top_up,
}
"""By the name under which a process of the suite is told; the others are the driver's and the database's own."""


def end_again(connection: Any, job_id: Any) -> None:
    """What `control.cancel` would be without its guards: a job that has ended is ended again."""
    unguarded = str(control._END.text).replace("AND state IN ('queued', 'running', 'paused')", "")
    statement = text(unguarded).bindparams(control._IDS)
    connection.execute(statement, {"ids": [job_id], "state": "cancelled", "code": None, "message": None})
