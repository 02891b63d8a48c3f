"""Database roles: who may do what, and no more.

Each can log in and has no password: where the server asks for one, nobody is let in until an operator sets it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import URL, Connection, make_url, text

from contracts.errors import ConfigurationError
from storage.database import Database
from storage.inputs import IDS
from storage.tables import metadata

MIGRATOR, PRODUCER, WORKER, WEBHOOKS, READER = (
    f"batchmill_{name}" for name in ("migrator", "producer", "worker", "webhooks", "reader")
)
VERSION_TABLE = "alembic_version"
_SECRET = {
    "webhook_endpoints": ("secret", "previous_secret"),
    "schedules": ("spec",),  # of URLs, which may hold passwords
    "runs": ("spec",),
}
_LOCK = 7_216_315_110  # any constant that nothing else locks


@dataclass(frozen=True)
class Role:
    """One role of ours."""

    name: str
    purpose: str
    grants: Mapping[str, str] = field(default_factory=dict)
    """By table or sequence: privileges as GRANT takes them. What triggers and identity columns do needs none."""
    owner: bool = False
    """Whether it owns the tables and may make others."""
    stages: bool = False
    """Whether it makes temporary tables."""


def _readable() -> dict[str, str]:
    grants = {}
    for table in metadata.sorted_tables:
        hidden = _SECRET.get(table.name, ())
        columns = ", ".join(column.name for column in table.columns if column.name not in hidden)
        grants[table.name] = f"SELECT ({columns})" if hidden else "SELECT"
    return grants


ROLES = (
    Role(MIGRATOR, "`batchmill migrate`: owns the tables", owner=True),
    Role(
        PRODUCER,
        "clients, the command line and `batchmill runner`: submit, read, control, models, webhooks, schedules",
        {
            "models": "SELECT, INSERT, UPDATE",
            "targets": "SELECT, INSERT",
            "inputs": "SELECT, INSERT",
            IDS: "USAGE",
            "jobs": "SELECT, INSERT, UPDATE, DELETE",
            "items": "SELECT, INSERT, DELETE",
            "item_errors": "SELECT",
            "shards": "SELECT, INSERT, UPDATE",
            "results": "SELECT",
            "compressions": "SELECT, INSERT",
            "batch_budgets": "SELECT",
            "workers": "SELECT",
            "deliveries": "SELECT, INSERT, UPDATE",
            "webhook_endpoints": "SELECT, INSERT, UPDATE",
            "schedules": "SELECT, INSERT, UPDATE, DELETE",
            "runs": "SELECT, INSERT, UPDATE",
        },
        stages=True,
    ),
    Role(
        WORKER,
        "workers, ticks and `batchmill purge`",
        {
            "models": "SELECT, INSERT",
            "targets": "SELECT",
            "inputs": "SELECT, DELETE",
            "jobs": "SELECT, UPDATE, DELETE",
            "items": "SELECT, DELETE",
            "item_errors": "SELECT, INSERT",
            "shards": "SELECT, INSERT, UPDATE",
            "results": "SELECT, INSERT, DELETE",
            "batch_budgets": "SELECT, INSERT, UPDATE",
            "deliveries": "SELECT, INSERT",
            "chores": "SELECT, INSERT, UPDATE",
            "compressions": "SELECT, UPDATE (progress, verdict, model_id, report, html)",
            "workers": "SELECT, INSERT, UPDATE, DELETE",
            "schedules": "SELECT, UPDATE (next_due_at)",
            "webhook_endpoints": "SELECT (id, url)",
            "runs": "SELECT, INSERT, UPDATE, DELETE",
        },
        stages=True,
    ),
    Role(
        WEBHOOKS,
        "`batchmill deliver`: deliveries, and neither inputs nor results",
        {
            "deliveries": "SELECT, UPDATE (state, attempt, token, due_at, last_status, last_error, finished_at)",
            "webhook_endpoints": "SELECT, UPDATE (disabled_at, disabled_reason)",
        },
    ),
    Role(READER, "people and reports: reads everything but secrets", _readable()),
)


def as_role(url: str, role: str) -> str:
    """A database's address for one of its roles; without a password, which is another's."""
    there = make_url(url)
    ours = URL.create(there.drivername, role, None, there.host, there.port, there.database, there.query)
    return ours.render_as_string()


def apply(url: str) -> None:
    """Make the roles that do not exist, and give each what it needs and nothing else; safe to repeat.

    Tables that do not exist yet are left out: after a migration it is to be repeated.

    Args:
        url: Of the database, as a superuser or as one who may create roles and owns the database and the tables.

    Raises:
        ConfigurationError: The user may not do this, or a role of that name is a superuser.
        DatabaseUnavailable: Postgres does not answer.
    """
    with Database(url) as database, database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        tables = [name for name in (*metadata.tables, VERSION_TABLE) if _exists(connection, name)]
        _check_owner(connection, tables)
        for role in ROLES:
            _create(connection, role)
            _let(connection, role, "CONNECT", "DATABASE")
            _let(connection, role, "USAGE", "SCHEMA")
            if role.stages:
                _let(connection, role, "TEMPORARY", "DATABASE")
            if role.owner:
                _let(connection, role, "CREATE", "SCHEMA")
                _own(connection, role, tables)
            else:
                _grant(connection, role, [*tables, *([IDS] if _exists(connection, IDS) else [])])


def _check_owner(connection: Connection, tables: list[str]) -> None:
    """Make sure that rights can be given: a GRANT by one who may not is a warning, and no error."""
    owned = text("""
        SELECT current_user, pg_has_role(relowner, 'USAGE') FROM pg_class
        WHERE relnamespace = CAST(current_schema() AS regnamespace) AND relname = ANY(:tables)
    """)
    for user, its_own in connection.execute(owned, {"tables": tables}):
        if not its_own:
            raise ConfigurationError(f"{user} does not own the tables: run it as their owner, or as a superuser")


def _let(connection: Connection, role: Role, right: str, of: str) -> None:
    """Give a right on the whole schema or database, unless the role has it, as everybody may."""
    name = f"current_{of.lower()}()"
    has = text(f"SELECT has_{of.lower()}_privilege(:role, {name}, :right)")
    values = {"role": role.name, "right": right}
    if connection.execute(has, values).scalar_one():
        return
    quoted = connection.execute(text(f"SELECT quote_ident({name})")).scalar_one()
    connection.execute(text(f"GRANT {right} ON {of} {quoted} TO {role.name}"))
    if not connection.execute(has, values).scalar_one():
        raise ConfigurationError(
            f"{right} on {of.lower()} {quoted} is not yours to give to {role.name}: run it as the database's owner, or "
            "as a superuser"
        )


def _create(connection: Connection, role: Role) -> None:
    connection.execute(
        text(f"""
            DO $$ BEGIN
                IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role.name}') THEN
                    CREATE ROLE {role.name} LOGIN;
                END IF;
            EXCEPTION WHEN duplicate_object OR unique_violation THEN  -- roles are the whole server's
            END $$
        """)
    )
    superuser = text("SELECT rolsuper FROM pg_roles WHERE rolname = :name")
    if connection.execute(superuser, {"name": role.name}).scalar_one():
        raise ConfigurationError(
            f"role {role.name} is a superuser, whom no grant confines: run ALTER ROLE {role.name} NOSUPERUSER"
        )


def _own(connection: Connection, role: Role, tables: list[str]) -> None:
    foreign = connection.execute(
        text("""
            SELECT relname FROM pg_class
            WHERE relnamespace = CAST(current_schema() AS regnamespace) AND relname = ANY(:tables)
              AND relowner <> (SELECT oid FROM pg_roles WHERE rolname = :name)
        """),
        {"tables": tables, "name": role.name},
    ).scalars()
    names = foreign.all()
    if names and not connection.execute(text(f"SELECT pg_has_role('{role.name}', 'SET')")).scalar_one():
        connection.execute(text(f"GRANT {role.name} TO CURRENT_USER"))  # who gives a table away must be able to act as
    for name in names:
        connection.execute(text(f"ALTER TABLE {name} OWNER TO {role.name}"))


def _grant(connection: Connection, role: Role, tables: list[str]) -> None:
    if tables:
        connection.execute(text(f"REVOKE ALL ON {', '.join(tables)} FROM {role.name}"))
    for name, privileges in {VERSION_TABLE: "SELECT", **role.grants}.items():
        if name in tables:
            connection.execute(text(f"GRANT {privileges} ON {name} TO {role.name}"))


def _exists(connection: Connection, table: str) -> bool:
    return connection.execute(text("SELECT to_regclass(:name)"), {"name": table}).scalar_one() is not None
