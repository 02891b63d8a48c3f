"""Databases of others, which rows are read from and written to: any that SQLAlchemy knows."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import URL, Engine, NullPool, create_engine
from sqlalchemy.exc import DBAPIError, InterfaceError, NoSuchModuleError, OperationalError, SQLAlchemyError

from contracts.errors import ConfigurationError, InvalidRequest, UnavailableError
from storage.database import KEEPALIVE, first_line, is_away, leave_out_rows

_SQLITE_AWAY = ("SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_LOCKED", "SQLITE_NOMEM")


def open_engine(url: URL, what: str) -> Engine:
    """An engine that holds no connection beyond its use.

    Args:
        url: As `producer.urls.database_url` gives it.
        what: `source` or `sink`, for messages.

    Raises:
        ConfigurationError: SQLAlchemy knows no such database, or the package of its driver is not installed.
        InvalidRequest: The URL asks for what its driver does not take.
    """
    where = f"{what} {url.set(query={}).render_as_string()}"
    postgres = url.drivername == "postgresql+psycopg"
    settings = {"prepare_threshold": None, "connect_timeout": 10, **KEEPALIVE} if postgres else {}
    try:
        return create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=settings)
    except NoSuchModuleError:
        raise ConfigurationError(
            f"{where}: SQLAlchemy knows no {url.drivername}; install the package that teaches it"
        ) from None
    except ImportError as error:
        raise ConfigurationError(f"{where}: {error}; install its driver: pip install {error.name}") from None
    except SQLAlchemyError as error:
        raise InvalidRequest(f"{where}: {str(error).partition(chr(10))[0]}") from None


@contextmanager
def explained(where: str, unavailable: type[UnavailableError]) -> Iterator[None]:
    """Turn what a database says into an error that names the table or the query, without values of rows.

    Raises:
        InvalidRequest: It does not take the statement.
        UnavailableError: Of the kind given: it does not answer, went away, or has no room left.
    """
    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        leave_out_rows(error)
        if _away(error):
            raise unavailable(f"{where} cannot be used now: {first_line(error)}") from error
        raise InvalidRequest(f"{where}: {first_line(error)}") from error


def _away(error: DBAPIError | psycopg.Error) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.Error) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return is_away(error)
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorname", "").startswith(_SQLITE_AWAY)
    return isinstance(error, OperationalError | InterfaceError)
