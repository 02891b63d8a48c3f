from collections.abc import Callable

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from contracts.errors import SchemaMismatch
from storage import schema
from storage.database import Database
from storage.tables import metadata

REVISIONS = [script.revision for script in ScriptDirectory.from_config(schema.config()).walk_revisions()][::-1]


def test_the_code_works_on_the_newest_revision() -> None:
    assert ScriptDirectory.from_config(schema.config()).get_current_head() == schema.HEAD


def test_models_match_migrations(database: Database) -> None:
    with database.transaction() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_revision_goes_up_and_down_and_up_again(make_database: Callable[..., str], revision: str) -> None:
    url = make_database(migrated=False)
    schema.upgrade(url, revision)
    schema.downgrade(url, "base")
    with Database(url) as database, database.transaction() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    schema.upgrade(url)
    schema.upgrade(url)
    with Database(url) as database, database.transaction() as connection:
        schema.check(connection)
        assert set(metadata.tables) < set(inspect(connection).get_table_names())


def test_work_on_another_revision_is_refused(make_database: Callable[..., str]) -> None:
    with (
        Database(make_database(migrated=False)) as database,
        database.transaction() as connection,
        pytest.raises(SchemaMismatch, match="at schema revision none.*run `batchmill migrate`"),
    ):
        schema.check(connection)
