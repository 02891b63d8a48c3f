"""One database for all tests of the storage layer, emptied before each: it costs a tenth of a new one."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from storage.database import Database
from storage.tables import metadata


@pytest.fixture(scope="session")
def shared_database_url(make_database: Callable[..., str]) -> str:
    return make_database()


@pytest.fixture
def database_url(shared_database_url: str) -> str:
    with Database(shared_database_url) as database, database.transaction() as connection:
        # Without triggers: the order of foreign keys does not matter.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in metadata.tables:
            connection.execute(text(f"DELETE FROM {table}"))
    return shared_database_url
