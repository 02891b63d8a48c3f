"""SQLite really; Postgres is under integration."""

import json
import resource
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import JSON, Column, Integer, MetaData, String, Table
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateTable

from contracts.errors import InvalidRequest, SinkUnavailable
from contracts.names import Task
from contracts.sinks import SqlSink
from producer.writing import Writer, open_sink
from producer.writing.plan import Plan, id_type
from producer.writing.upsert import statement
from tests.results import Cut, Notes, StoredResults, model_of

LABELS = [[{"label": "good", "score": 0.75}, {"label": "bad", "score": 0.25}], None, [{"label": "bad", "score": 0.5}]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "it.db"


@pytest.fixture
def query(path: Path) -> Callable[..., list[tuple[Any, ...]]]:
    def run(statement: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(path)
        try:
            with connection:
                return connection.execute(statement).fetchall()
        finally:
            connection.close()

    return run


def writer(path: Path, **more: Any) -> Writer:
    return open_sink(SqlSink(url=f"sqlite:///{path}", table="scores", **more))


def test_a_table_that_is_not_there_is_made(path: Path, query: Callable[..., Any]) -> None:
    sink, results = writer(path), StoredResults(LABELS, Task.CLASSIFY, ids=["a", "b", None])
    sink.check(results.target.model, results.target.params)
    assert query("SELECT name FROM sqlite_master") == []
    assert sink.write(results, None, Notes()) == 3
    assert query("SELECT id, label, score, error_code, error_message, model FROM scores ORDER BY id") == [
        ("2", "bad", 0.5, None, None, "model@3"),
        ("a", "good", 0.75, None, None, "model@3"),
        ("b", None, None, "too_long", "it is long", "model@3"),
    ]
    assert json.loads(query("SELECT output FROM scores WHERE id = 'a'")[0][0]) == LABELS[0]
    [(updated,)] = query("SELECT DISTINCT updated_at FROM scores")
    assert updated.startswith("20")


def test_known_ids_are_updated_and_an_error_takes_the_place_of_an_output(path: Path, query: Callable[..., Any]) -> None:
    writer(path).write(StoredResults(LABELS, Task.CLASSIFY), None, Notes())
    writer(path).write(StoredResults([None, *LABELS[:1]], Task.CLASSIFY), None, Notes())
    assert query("SELECT id, label, error_code FROM scores ORDER BY id") == [
        ("id-0", None, "too_long"),
        ("id-1", "good", None),
        ("id-2", "bad", None),
    ]


def test_columns_that_exist_are_written_and_no_others(path: Path, query: Callable[..., Any]) -> None:
    query("CREATE TABLE scores (review INTEGER PRIMARY KEY, sentiment TEXT, stars INTEGER DEFAULT 3)")
    query("INSERT INTO scores VALUES (2, 'as it was', 5)")
    sink = writer(path, columns={"review": "id", "sentiment": "label"})
    results = StoredResults(LABELS, Task.CLASSIFY, ids=["1", "2", "3"])
    sink.check(results.target.model, {})
    notes = Notes()
    assert sink.write(results, None, notes) == 2  # the one that failed is not written: no column says that it did
    assert notes.kept == [({"position": 3, "left": 1}, 2)]
    assert query("SELECT * FROM scores ORDER BY review") == [(1, "good", 3), (2, "as it was", 5), (3, "bad", 3)]


@pytest.mark.parametrize("lost", [False, True], ids=["noted", "not-noted"])
@pytest.mark.parametrize("cut_after", [1, 2, 3])
def test_cut_and_resumed_there_is_neither_a_gap_nor_a_duplicate(
    path: Path, query: Callable[..., Any], cut_after: int, lost: bool
) -> None:
    query("CREATE TABLE scores (id TEXT PRIMARY KEY, label TEXT)")
    query("CREATE TABLE log (id TEXT)")
    for event in ("INSERT", "UPDATE"):
        query(f"CREATE TRIGGER t{event} AFTER {event} ON scores BEGIN INSERT INTO log VALUES (new.id); END")
    outputs = [None if n == 8 else [{"label": f"l{n}", "score": 0.0}] for n in range(25)]
    results = StoredResults(outputs, Task.CLASSIFY, page=7)
    cut = Notes(cut_after, before=lost)
    with pytest.raises(Cut):
        writer(path, rows_per_transaction=10).write(results, None, cut)
    assert writer(path, rows_per_transaction=10).write(results, cut.last, Notes()) == 24
    assert query("SELECT count(*), count(DISTINCT label) FROM scores") == [(24, 24)]
    again = query("SELECT count(*) - count(DISTINCT id) FROM log")[0][0]
    assert again == 0  # what is there already is not written again


def test_vectors_are_json_arrays_and_bits_are_bytes(path: Path, query: Callable[..., Any]) -> None:
    writer(path).write(StoredResults([np.array([0.1, -2], np.float32), None]), None, Notes())
    assert query("SELECT output FROM scores ORDER BY id") == [("[0.1,-2.0]",), (None,)]
    query("DROP TABLE scores")
    bits = StoredResults([np.array([1, 255], np.uint8)], params={"precision": "ubinary"})
    writer(path).write(bits, None, Notes())
    assert query("SELECT output FROM scores") == [(b"\x01\xff",)]


@pytest.mark.parametrize(
    ("table", "more", "message"),
    [
        ("id TEXT, label TEXT", {}, "table scores, column id: make it the primary key or give it a unique index"),
        ("label TEXT", {}, "table scores has no column id: add one"),
        ("id TEXT PRIMARY KEY, stars INTEGER", {}, "no column for an output: add one of output, label, score, or"),
        (
            "id TEXT PRIMARY KEY, label INTEGER",
            {},
            "column label: it is integer and cannot take label, which is a text",
        ),
        ("id TEXT PRIMARY KEY, score TEXT", {}, "column score: it is text and cannot take score, which is a number"),
        ("id DATETIME PRIMARY KEY, score REAL", {}, "column id: it is datetime and cannot take id"),
        ("id TEXT PRIMARY KEY, label TEXT, who TEXT NOT NULL", {}, "column who: it is NOT NULL and gets no value"),
        (
            "id TEXT PRIMARY KEY, label TEXT NOT NULL, error_code TEXT",
            {},
            "column label: it is NOT NULL, and a row has",
        ),
        ("id TEXT PRIMARY KEY, label TEXT", {"columns": {"mood": "label"}}, "table scores has no column mood"),
        (
            "id TEXT PRIMARY KEY, label TEXT",
            {"columns": {"label": "mood"}},
            "no field mood; there are id, output, label",
        ),
        ("id TEXT PRIMARY KEY, label TEXT", {"columns": {"id": "label"}}, "none takes the field id"),
    ],
)
def test_another_schema_is_refused_before_scoring(
    path: Path, query: Callable[..., Any], table: str, more: dict[str, Any], message: str
) -> None:
    query(f"CREATE TABLE scores ({table})")
    with pytest.raises(InvalidRequest, match=message):
        writer(path, **more).check(model_of(Task.CLASSIFY), {})


def test_ids_that_repeat_or_are_no_numbers(path: Path, query: Callable[..., Any]) -> None:
    query("CREATE TABLE scores (id INTEGER PRIMARY KEY, label TEXT)")
    for ids, message in {
        ("1", "01", "2"): "column id: two rows have the id '1'; give each one of its own",
        ("1", "2", "2a"): "column id: it holds whole numbers, and '2a' is an id; make it text",
    }.items():
        results = StoredResults([LABELS[0]] * 3, Task.CLASSIFY, ids=ids)
        with pytest.raises(InvalidRequest, match=message):
            writer(path).write(results, None, Notes())
    assert query("SELECT * FROM scores") == []


def test_a_database_that_is_locked_or_not_there(path: Path, query: Callable[..., Any], tmp_path: Path) -> None:
    query("PRAGMA journal_mode = delete")
    results = StoredResults([[{"label": "x" * 3000, "score": 0.0}]] * 40, Task.CLASSIFY)
    writer(path, rows_per_transaction=10).check(results.target.model, {})
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(
        SinkUnavailable, match=r"table scores of sqlite:.*it.db.* cannot be used now: database is locked"
    ):
        open_sink(SqlSink(url=f"sqlite:///{path}?timeout=0.05", table="scores")).check(results.target.model, {})
    holder.close()
    with pytest.raises(SinkUnavailable, match="unable to open database file"):
        writer(tmp_path / "no" / "it.db").check(results.target.model, {})


def test_a_disk_that_takes_no_more_and_then_does(path: Path, query: Callable[..., Any]) -> None:
    results = StoredResults([[{"label": "x" * 3000, "score": 0.0}]] * 40, Task.CLASSIFY)
    table, notes = writer(path, rows_per_transaction=10), Notes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    try:
        with pytest.raises(SinkUnavailable, match=r"table scores of sqlite:.*it.db cannot be used now: "):
            table.write(results, None, notes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert 0 < len(notes.kept) < 4
    assert query("SELECT count(*) FROM scores") == [(notes.kept[-1][1],)]
    assert table.write(results, notes.last, Notes()) == 40
    assert query("SELECT count(*) FROM scores") == [(40,)]


def test_other_databases_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="rows are written to PostgreSQL, SQLite, MySQL and MariaDB") as caught:
        open_sink(SqlSink(url="oracle://me:hush@host/name?key=hush", table="scores"))
    assert "hush" not in str(caught.value)


def test_the_words_of_mysql() -> None:
    table = Table("scores", MetaData(), Column("id", Integer), Column("output", JSON), Column("label", String))
    plan = Plan(table, {name: name for name in ("id", "output", "label")}, new=False)
    words = str(statement("mysql", plan).compile(dialect=mysql.dialect()))
    assert " ".join(words.split()) == (
        "INSERT INTO scores (id, output, label) VALUES (%s, %s, %s) "
        "ON DUPLICATE KEY UPDATE output = VALUES(output), label = VALUES(label)"
    )


@pytest.mark.parametrize(("mariadb", "collation"), [(False, "utf8mb4_0900_bin"), (True, "utf8mb4_nopad_bin")])
def test_ids_of_mysql_differ_by_case_and_by_blanks(*, mariadb: bool, collation: str) -> None:
    dialect = mysql.dialect(is_mariadb=mariadb)
    table = Table("scores", MetaData(), Column("id", id_type(dialect), primary_key=True))
    words = str(CreateTable(table).compile(dialect=dialect))
    assert f"id VARCHAR(512) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL" in words
