"""What a worker or a runner that died leaves behind: leases, which its supervisor need not let expire."""

import logging
import socket
import threading

log = logging.getLogger(__name__)


def release_leases(database_url: str, pid: int) -> None:
    """Give back at once what a process of this host held that is known to have ended; its death counts.

    It does not hold the supervisor up. Where Postgres does not answer, the leases expire by themselves.
    """
    threading.Thread(target=_release, args=(database_url, pid), daemon=True).start()


def _release(database_url: str, pid: int) -> None:
    from storage import lostruns, rescue  # here: a supervisor whose workers live has no use for it
    from storage.database import Database

    name = f"{socket.gethostname()}:{pid}"
    try:
        with Database(database_url, pool_size=1, transaction_seconds=30.0) as database:
            released = len(rescue.rescue(database, name))
            with database.transaction() as connection:
                released += lostruns.rescue(connection, name)
    except Exception as error:  # whatever it is, the stack goes on
        log.warning("the leases of process %d are left to expire: %s", pid, error)
    else:
        if released:
            log.warning("process %d left %d leases, which went back to the queue", pid, released)
