"""What the URLs of sources and sinks have in common: the day in them, variables that hold them, what messages show."""

import os
from datetime import date

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from contracts.errors import InvalidRequest
from contracts.urls import VARIABLE
from contracts.urls import shown as shown

DATE = "{date}"


def dated(url: str, day: date | None) -> str:
    """The URL with `{date}` filled in as `2026-11-22`.

    Raises:
        InvalidRequest: It has the place, and there is no day.
    """
    if DATE in url and day is None:
        raise InvalidRequest(f"{shown(url)}: {DATE} stands for the day of a run, and this has none; write the day")
    return url if day is None else url.replace(DATE, day.isoformat())


def database_url(url: str, what: str) -> URL:
    """The address of a database; `env:NAME` is taken from that variable of the process.

    Args:
        url: As a source or a sink gives it.
        what: `source` or `sink`, for messages.

    Raises:
        InvalidRequest: The variable is not set, or it is no address; what may hold a password is not repeated.
    """
    where = what
    if url.startswith(VARIABLE):
        name = url.removeprefix(VARIABLE)
        where = f"{what} {url}"
        if not (url := os.environ.get(name, "")):
            raise InvalidRequest(f"{where}: the variable {name} is not set in this process; set it, or give the URL")
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidRequest(f"{where}: no URL of a database; write postgresql://user:password@host/name") from None
    # Postgres' own name for it means another driver to SQLAlchemy, which a client does not install.
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername in ("postgresql", "postgres") else parsed
