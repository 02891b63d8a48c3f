"""The connection to Postgres and the transaction scope, which is the only place that commits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from sqlalchemy import URL, Connection, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from contracts.errors import ConfigurationError, DatabaseUnavailable


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
            f"BATCHMILL_DATABASE_URL: {parsed.render_as_string()} is not Postgres; write postgresql://…"
        )
    return parsed.set(drivername="postgresql+psycopg")


class Database:
    """A pool of connections to one Postgres.

    >>> with Database("postgresql://localhost/batchmill") as database:  # doctest: +SKIP
    ...     with database.transaction() as connection:
    ...         ...
    """

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.url = parse_url(url)
        # pre-ping: a Postgres that was restarted costs a reconnect, not an error. prepare_threshold None: named
        # statements do not survive behind a transaction-mode pooler.
        self._engine: Engine = create_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            connect_args={"prepare_threshold": None, "connect_timeout": 10},
        )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Raises:
            DatabaseUnavailable: Postgres does not answer, or went away meanwhile.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            if error.connection_invalidated or error.statement is None:
                raise DatabaseUnavailable(f"{self.name} does not answer: {_first_line(error)}") from error
            raise

    @property
    def name(self) -> str:
        """The address for messages, without its password."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=True)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _first_line(error: OperationalError) -> str:
    return str(error.orig).strip().splitlines()[0]
