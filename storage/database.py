"""The connection to Postgres and the transaction scope, which is the only place that commits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from contracts.errors import ConfigurationError, DatabaseUnavailable

_AWAY = ("08", "25006", "25P03", "25P04", "40", "53", "55P03", "57P", "57014")
"""SQLSTATEs, or how they begin, after which trying again can help: the connection is broken, or leads to a standby; a
transaction took too long, met another, or waited for a lock; memory, disk or connections are used up; the server shuts
down; a statement was cancelled."""
KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 3, "keepalives_count": 3, "tcp_user_timeout": 15_000}
"""For psycopg: a server that a network swallowed is noticed within 15 seconds, and not in the two hours that a kernel
takes."""
_NO_WAIT = text("SET LOCAL synchronous_commit = off")
IDLE_SECONDS = 60.0
"""A process that stands still in the middle of a transaction (a frozen machine, Ctrl-Z) holds its locks for so long."""


def parse_url(url: str) -> URL:
    """The address, with psycopg as its driver.

    Raises:
        ConfigurationError: It is not the address of a Postgres.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigurationError("BATCHMILL_DATABASE_URL: write postgresql://user:password@host/name") from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigurationError(
            f"BATCHMILL_DATABASE_URL: {parsed.set(query={}).render_as_string()} is not Postgres; write postgresql://…"
        )
    return parsed.set(drivername="postgresql+psycopg")


class Database:
    """A pool of connections to one Postgres.

    Args:
        url: Its address.
        pool_size: Connections that are kept; as many more come and go.
        transaction_seconds: What a transaction may take, whatever it waits for; then the server ends it. Nothing else
            frees the locks of a process that stands still, so those whose work others take over set it.

    >>> with Database("postgresql://localhost/batchmill") as database:  # doctest: +SKIP
    ...     with database.transaction() as connection:
    ...         ...
    """

    def __init__(self, url: str, *, pool_size: int = 5, transaction_seconds: float | None = None) -> None:
        self.url = parse_url(url)
        # For each transaction anew: behind a pooler, what is set for a session reaches others, and not all of ours.
        name, seconds = "idle_in_transaction_session_timeout", IDLE_SECONDS
        if transaction_seconds is not None:
            name, seconds = "transaction_timeout", transaction_seconds
        self._limit = text(f"SET LOCAL {name} = {seconds * 1000:.0f}")
        # pre-ping: a Postgres that was restarted costs a reconnect, not an error. prepare_threshold None: named
        # statements do not survive behind a transaction-mode pooler. hide_parameters: errors are logged, inputs not.
        self._engine: Engine = create_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            hide_parameters=True,
            isolation_level="READ COMMITTED",  # whatever a role or a database has for its default
            connect_args={"prepare_threshold": None, "connect_timeout": 10, **KEEPALIVE},
        )

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Connection]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Args:
            durable: Whether to wait until it is on the disk. Where not, a crash of the server may take it back, and
                with it those after it that did not wait either; one that waits is never kept without those before it.

        Raises:
            DatabaseUnavailable: Postgres does not answer, went away meanwhile, or has no room left.
        """
        try:
            with self._engine.begin() as connection:
                connection.execute(self._limit)
                if not durable:
                    connection.execute(_NO_WAIT)
                yield connection
        except (DBAPIError, psycopg.Error) as error:
            leave_out_rows(error)
            if not is_away(error):
                raise
            raise DatabaseUnavailable(f"{self.name} cannot be used now: {first_line(error)}") from error

    @property
    def name(self) -> str:
        """The address for messages, without its password."""
        return self.url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def leave_out_rows(error: DBAPIError | psycopg.Error) -> None:
    """Keep the first line of what the server says: those below it quote rows, and errors end up in logs."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.Error) and (primary := cause.diag.message_primary) is not None:
        cause.args = (primary,)
        error.args = (primary if error is cause else f"({type(cause).__name__}) {primary}",)


def is_away(error: DBAPIError | psycopg.Error) -> bool:
    """Whether the connection is lost, or the server says that it cannot work now; then trying again can help."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    # COPY goes through the driver, whose errors nobody has wrapped.
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.Error):
        return False
    if cause.sqlstate is None:
        return isinstance(cause, psycopg.OperationalError)
    return cause.sqlstate.startswith(_AWAY)


def first_line(error: DBAPIError | psycopg.Error) -> str:
    """What the server says, without what it quotes."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
