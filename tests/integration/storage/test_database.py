import traceback
from collections.abc import Callable
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from contracts.errors import ConfigurationError, DatabaseUnavailable
from storage.bulk import copy_bytes, copy_rows, fetch_binary
from storage.database import Database

STATEMENTS: dict[str, Callable[[Connection], object]] = {
    "execute": lambda connection: connection.execute(text("SELECT 1")),
    "copy_rows": lambda connection: copy_rows(connection, "items", {"position": "int8"}, [(1,)]),
    "copy_bytes": lambda connection: copy_bytes(connection, "items", ["position"], b""),
    "fetch_binary": lambda connection: fetch_binary(connection, "SELECT 1", {}),
    "commit": lambda connection: None,
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_connection_that_is_cut_is_one_error_and_the_next_is_good(database: Database, name: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot be used now: .*"), database.transaction() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with database.transaction() as other:
            assert other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}).scalar_one()
        STATEMENTS[name](connection)
    with database.transaction() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_a_connection_that_was_cut_while_nobody_used_it_is_replaced(database: Database, database_url: str) -> None:
    with database.transaction() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with Database(database_url) as elsewhere, elsewhere.transaction() as connection:
        assert connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}).scalar_one()
    with database.transaction() as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() != pid


def test_a_block_that_raises_leaves_nothing(database: Database) -> None:
    with pytest.raises(KeyError), database.transaction() as connection:
        connection.execute(text("INSERT INTO items (job_id, position, input_id) VALUES (:id, 0, 0)"), {"id": uuid4()})
        raise KeyError
    with database.transaction() as connection:
        assert connection.execute(text("SELECT count(*) FROM items")).scalar_one() == 0


def test_only_a_transaction_that_may_be_lost_does_not_wait_for_the_disk(database: Database) -> None:
    waits = []
    for durable in (False, True):
        with database.transaction(durable=durable) as connection:
            waits.append(connection.execute(text("SHOW synchronous_commit")).scalar_one())
    assert waits == ["off", "on"]


def test_a_statement_that_is_wrong_is_not_taken_for_an_absent_server(database: Database) -> None:
    with pytest.raises(DBAPIError, match="nowhere"), database.transaction() as connection:
        connection.execute(text("SELECT * FROM nowhere"))


@pytest.mark.parametrize(
    "url", ["postgresql://me:secret@127.0.0.1:1/db", "postgresql://me@127.0.0.1:1/db?password=secret"]
)
def test_a_server_that_is_not_there_is_said_without_the_password(url: str) -> None:
    with (
        Database(url) as database,
        pytest.raises(DatabaseUnavailable, match=r"me(:\*\*\*)?@127\.0\.0\.1:1/db") as raised,
        database.transaction(),
    ):
        pass
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["mysql://host/db", "host/db", ""])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://"):
        Database(url)


@pytest.mark.parametrize("way", ["statement", "copy"])
def test_an_error_quotes_no_row(database: Database, way: str) -> None:
    value = "canary"[::-1]  # tracebacks show lines of this file
    with pytest.raises((DBAPIError, psycopg.Error)) as raised, database.transaction() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE refusing (payload json, n bigint CHECK (n > 0))"))
        if way == "copy":
            copy_rows(connection, "refusing", {"payload": "bytea"}, [(f'{{"{value}":'.encode(),)])
        else:
            connection.execute(text("INSERT INTO refusing VALUES (to_json(CAST(:it AS text)), 0)"), {"it": value})
    assert value not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("way", ["statement", "copy"])
@pytest.mark.parametrize("state", ["53100", "53300", "57P03", "08006"])
def test_a_server_that_cannot_work_now_can_be_tried_again(database: Database, way: str, state: str) -> None:
    """A full disk, too many connections, a server that starts: what it says itself, here by a trigger."""
    with database.transaction() as connection:
        connection.execute(
            text(f"""
                CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '{state}'; END$$
            """)
        )
        connection.execute(text("DROP TABLE IF EXISTS full_up; CREATE TABLE full_up (n bigint)"))
        connection.execute(text("CREATE TRIGGER refuse BEFORE INSERT ON full_up EXECUTE FUNCTION refuse()"))
    with pytest.raises(DatabaseUnavailable, match="not now"), database.transaction() as connection:
        if way == "copy":
            copy_rows(connection, "full_up", {"n": "int8"}, [(1,)])
        else:
            connection.execute(text("INSERT INTO full_up VALUES (1)"))
    with database.transaction() as connection:
        assert connection.execute(text("SELECT count(*) FROM full_up")).scalar_one() == 0
        connection.execute(text("DROP TABLE full_up"))


def test_the_locks_of_a_process_that_stands_still_are_freed(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS one (n bigint)"))
        connection.execute(text("DELETE FROM one"))
        connection.execute(text("INSERT INTO one VALUES (1)"))
    with (
        Database(database.url.render_as_string(), transaction_seconds=0.5) as frozen,
        pytest.raises(DatabaseUnavailable),
        frozen.transaction() as connection,
    ):
        connection.execute(text("UPDATE one SET n = 2"))
        with database.transaction() as other:  # it waits for a transaction that nobody goes on with
            other.execute(text("SET LOCAL lock_timeout = '20s'"))
            other.execute(text("UPDATE one SET n = 3"))
        connection.execute(text("SELECT 1"))
    with database.transaction() as connection:
        assert connection.execute(text("SELECT n FROM one")).scalar_one() == 3
        connection.execute(text("DROP TABLE one"))
