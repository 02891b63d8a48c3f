"""Queries as sources: on the real Postgres, and on SQLite."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, NullPool, create_engine, make_url, text

from contracts.errors import BatchmillError, ConfigurationError, DatabaseUnavailable, InvalidInput, InvalidRequest
from contracts.sources import Columns, SqlSource
from producer.reading.opening import open_source

ROWS = 300_000
TABLE = """
CREATE TABLE reviews AS
SELECT n AS key, repeat('x', 200) || n AS text, n % 5 AS stars FROM generate_series(1, 20000) n
"""
SCRIPT = """
import sys
from contracts.sources import SqlSource
from producer.reading.opening import open_source

def peak():  # of this program alone: what getrusage tells begins with the parent's
    [line] = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

query = "SELECT n AS id, repeat('x', 200) || n AS input FROM generate_series(1, 300000) n"
with open_source(SqlSource(url=sys.argv[1], query=query)) as reading:
    before = peak()
    for _ in reading.entries():
        pass
    print(reading.rows_read, peak() - before)
"""


@pytest.fixture(scope="module")
def postgres(make_database: Callable[..., str]) -> str:
    url = make_database(migrated=False)
    with _engine(url).begin() as connection:
        connection.execute(text(TABLE))
    return url


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sqlite") / "reviews.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE reviews (key INTEGER, text TEXT, stars INTEGER)")
    rows = ((n, "x" * 200 + str(n), n % 5) for n in range(1, 20_001))
    connection.executemany("INSERT INTO reviews VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return f"sqlite:///{path}"


@pytest.fixture(params=["postgres", "sqlite"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def _engine(url: str) -> Engine:
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)


def read(url: str, query: str, **columns: Any) -> list[tuple[Any, Any]]:
    with open_source(SqlSource(url=url, query=query, columns=Columns(**columns))) as reading:
        entries = list(reading.entries())
        reading.check_unchanged()
        assert (reading.rows_read, reading.rows, reading.bytes) == (len(entries), None, None)
    assert [entry.where for entry in entries[:2]] == ["the query, row 1", "the query, row 2"][: len(entries)]
    return [(e.custom_id, e.value) if e.error is None else (e.where, e.error.reason) for e in entries]


def test_rows_of_a_table(url: str) -> None:
    query = "SELECT * FROM reviews ORDER BY key"
    rows = read(url, query, id="key", input="text")
    assert len(rows) == 20_000
    assert rows[::9_999] == [(str(n), "x" * 200 + str(n)) for n in (1, 10_000, 19_999)]
    assert read(url, f"{query} LIMIT 1", id="key", template="{stars}/5: {key}") == [("1", "1/5: 1")]
    assert read(url, "SELECT key AS id, stars AS input FROM reviews WHERE key < 3 ORDER BY key") == [("1", 1), ("2", 2)]


def test_signs_of_a_query_mean_what_they_say(url: str) -> None:
    query = "SELECT 'a%s:b %(x)s :name' AS input FROM reviews WHERE text LIKE 'x%20000'"
    assert read(url, query) == [(None, "a%s:b %(x)s :name")]


def test_bad_rows_are_named_and_the_rest_goes_on(url: str) -> None:
    query = "SELECT CASE key WHEN 2 THEN NULL ELSE 'text' END AS input, 1.5 * key AS id FROM reviews WHERE key < 4"
    rows = read(url, query, id="input", input="id") if url.startswith("sqlite") else read(url, query)
    if url.startswith("sqlite"):
        assert [row[0] for row in rows] == ["text", None, "text"]
        return
    assert [row[0] for row in rows] == ["the query, row 1", "the query, row 2", "the query, row 3"]
    assert "id is of type Decimal: give a string or an integer" in rows[0][1]
    assert "the input is null" in rows[1][1]


def test_ids_and_inputs_of_postgres_types(postgres: str) -> None:
    key = UUID("019ab3ae-0000-7000-8000-000000000000")
    query = f"SELECT '{key}'::uuid AS id, '{{\"a\": [1, 2.5]}}'::jsonb AS input"
    assert read(postgres, query) == [(str(key), {"a": [1, 2.5]})]
    assert read(postgres, "SELECT 12::numeric(20) AS id, ARRAY['a', 'b'] AS input") == [("12", ["a", "b"])]
    query = "SELECT DATE '2026-11-22' AS day, 1.50::numeric AS price, true AS sold"
    assert read(postgres, query, template="{day} {price} {sold}") == [(None, "2026-11-22 1.50 true")]


def test_what_is_read_is_of_one_moment(postgres: str) -> None:
    source = SqlSource(url=postgres, query="SELECT key AS id, text AS input FROM reviews")
    with open_source(source) as reading:
        entries = reading.entries()
        next(entries)
        with _engine(postgres).begin() as connection:
            connection.execute(text("INSERT INTO reviews VALUES (0, 'late', 1)"))
        try:
            assert "0" not in {entry.custom_id for entry in entries}
            assert reading.rows_read == 20_000
        finally:
            with _engine(postgres).begin() as connection:
                connection.execute(text("DELETE FROM reviews WHERE key = 0"))


def test_nothing_is_written(url: str) -> None:
    returning = "DELETE FROM reviews RETURNING key AS id, text AS input"
    with pytest.raises(InvalidInput, match="the query failed: "):
        read(url, returning)
    with pytest.raises(BatchmillError):
        read(url, "UPDATE reviews SET stars = 0")
    assert len(read(url, "SELECT text AS input FROM reviews WHERE stars > 0")) == 16_000


def test_a_query_that_is_wrong_is_told_in_one_line(url: str) -> None:
    with pytest.raises(InvalidInput, match=r'^the query: the query failed: .*"?nothing"?') as caught:
        read(url, "SELECT *\nFROM nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInput, match="column 'input' does not exist; .* 'key', 'stars', 'text'"):
        read(url, "SELECT * FROM reviews")
    with pytest.raises(InvalidInput, match="column 'input' stands more than once"):
        read(url, "SELECT text AS input, key AS input FROM reviews")


def test_a_query_that_fails_on_the_way_names_the_row(postgres: str) -> None:
    source = SqlSource(url=postgres, query="SELECT 1 / (5000 - n) AS input FROM generate_series(1, 9000) n")
    with open_source(source) as reading, pytest.raises(InvalidInput) as caught:
        for _ in reading.entries():
            pass
    # The server tells of a page what it would of its first row.
    assert str(caught.value) == "the query, row 4001: the query failed: division by zero"
    assert reading.rows_read == 4_000


def test_a_server_that_goes_away_can_be_asked_again(postgres: str) -> None:
    source = SqlSource(url=postgres, query="SELECT text AS input FROM reviews")
    with open_source(source) as reading, pytest.raises(DatabaseUnavailable, match="cannot be read now") as caught:
        for _ in reading.entries():
            if reading.rows_read == 1:
                _end_others(postgres)
    assert "\n" not in str(caught.value)
    closed = make_url(postgres).set(host="127.0.0.1", port=1, password="secret", query={})
    with pytest.raises(DatabaseUnavailable, match=r"^source postgresql\+psycopg://.*:\*\*\*@127\.0\.0\.1:1/") as caught:
        read(closed.render_as_string(hide_password=False), "SELECT 1 AS input")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELECT nextval('more') AS input", "cannot execute nextval\\(\\) in a read-only transaction"),
        ("SELECT pg_sleep(9) AS input", "canceling statement due to statement timeout"),
    ],
)
def test_what_a_query_does_again_each_time_is_not_waited_for(postgres: str, query: str, reason: str) -> None:
    with _engine(postgres).begin() as connection:
        connection.execute(text("CREATE SEQUENCE IF NOT EXISTS more"))
    hasty = make_url(postgres).update_query_dict({"options": "-c statement_timeout=200"})
    with pytest.raises(InvalidInput, match=f"the query failed: {reason}"):
        read(hasty.render_as_string(hide_password=False), query)


def _end_others(url: str) -> None:
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
    with _engine(url).begin() as connection:
        connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch, postgres: str) -> str:
    monkeypatch.setenv("REVIEWS_URL", postgres)
    return "env:REVIEWS_URL"


def test_a_url_that_is_in_a_variable(variable: str) -> None:
    assert read(variable, "SELECT 'x' AS input") == [(None, "x")]
    with pytest.raises(BatchmillError, match="the variable NOT_SET is not set"):
        read("env:NOT_SET", "SELECT 1 AS input")


def test_databases_that_cannot_be_opened(tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"
    with pytest.raises(InvalidInput, match=r"missing\.db: there is no such database file"):
        read(f"sqlite:///{missing}", "SELECT 1 AS input")
    assert not missing.exists()
    with pytest.raises(ConfigurationError, match=r"source mysql\+pymysql://me:\*\*\*@db/shop: .*pip install pymysql"):
        read("mysql+pymysql://me:secret@db/shop", "SELECT 1 AS input")
    with pytest.raises(ConfigurationError, match="SQLAlchemy knows no nosuch"):
        read("nosuch://db/shop", "SELECT 1 AS input")
    with pytest.raises(InvalidRequest, match="source: no URL of a database"):
        read("reviews", "SELECT 1 AS input")


def test_memory_stays_flat(postgres: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, postgres], capture_output=True, text=True, check=True)
    rows, grown = done.stdout.split()
    assert int(rows) == ROWS
    assert float(grown) < 16
