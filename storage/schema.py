"""The schema's revision: bring it up to date, and refuse to work on another one."""

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from contracts.errors import SchemaMismatch
from storage.database import Database

_LOCK = 7_216_315_107  # any constant: two migrations of one database exclude each other


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for the revisions in `migrations/`."""
    alembic = Config()
    alembic.set_main_option("script_location", "migrations:")
    alembic.attributes["connection"] = connection
    return alembic


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at that address to a revision, the newest by default; safe to call from many at once.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    with Database(url) as database, database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        command.upgrade(config(connection), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the database at that address back to a revision (`base` for nothing at all)."""
    with Database(url) as database, database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        command.downgrade(config(connection), revision)


def expected_revision() -> str | None:
    """The revision that this code works on."""
    return ScriptDirectory.from_config(config()).get_current_head()


def check(connection: Connection) -> None:
    """Make sure that the database is at the revision that this code works on.

    Raises:
        SchemaMismatch: It is at another one, or at none.
    """
    found, expected = MigrationContext.configure(connection).get_current_revision(), expected_revision()
    if found != expected:
        raise SchemaMismatch(
            f"the database is at schema revision {found or 'none'}, this version of batchmill works on {expected}: "
            "run `batchmill migrate`"
            + ("" if found is None else ", or use the version of batchmill that the database belongs to")
        )
