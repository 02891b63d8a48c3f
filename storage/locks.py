"""The advisory lock by which submissions and purges exclude each other, held until the transaction ends.

Whoever adds items shares it, one chunk at a time; each batch of a purge has it alone. So an item is either there when
a purge looks for what nobody refers to, or finds gone what the purge removed. Sealing needs no lock: the items stand by
then, and keep what they refer to.
"""

from datetime import timedelta

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

_KEY = 7_216_315_108  # any constant that nothing else locks


def share_with_purge(connection: Connection) -> None:
    """Keep purges out; a transaction that adds items begins with it."""
    connection.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": _KEY})


def exclude_submissions(connection: Connection, patience: timedelta) -> bool:
    """Keep submissions out, once those under way are through; whether that was possible in time.

    New ones wait meanwhile, so that patience must be short: a client that hangs in the middle of a chunk holds its
    share for as long as it hangs.
    """
    timeout = f"{max(round(patience.total_seconds() * 1000), 1)}ms"
    try:
        with connection.begin_nested():
            connection.execute(text("SELECT set_config('lock_timeout', :timeout, true)"), {"timeout": timeout})
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _KEY})
            connection.execute(text("SET LOCAL lock_timeout = 0"))
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):
            return False
        raise
    return True
