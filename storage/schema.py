"""The schema's revision: bring it up to date, and refuse to work on another one."""

from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from contracts.errors import SchemaMismatch
from storage.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

_LOCK = 7_216_315_107  # any constant: two migrations of one database exclude each other


def config(connection: Connection | None = None) -> "Config":
    """Alembic's configuration for the revisions in `migrations/`."""
    from alembic.config import Config  # here and below: every client checks the schema, few migrate it

    alembic = Config()
    alembic.set_main_option("script_location", "migrations:")
    alembic.attributes["connection"] = connection
    return alembic


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at that address to a revision, the newest by default; safe to call from many at once.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    from alembic import command

    with Database(url) as database, database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        command.upgrade(config(connection), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the database at that address back to a revision (`base` for nothing at all)."""
    from alembic import command

    with Database(url) as database, database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        command.downgrade(config(connection), revision)


HEAD = "0006"
"""The revision that this code works on: the newest in `migrations/`, as a test makes sure."""


def check(connection: Connection) -> None:
    """Make sure that the database is at the revision that this code works on.

    Raises:
        SchemaMismatch: It is at another one, or at none.
    """
    found = revision(connection)
    if found != HEAD:
        raise SchemaMismatch(
            f"the database is at schema revision {found or 'none'}, this version of batchmill works on {HEAD}: "
            "run `batchmill migrate`"
            + ("" if found is None else ", or use the version of batchmill that the database belongs to")
        )


def revision(connection: Connection) -> str | None:
    """The revision that the database is at; None when it was never migrated."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return found
