"""Sinks on a Postgres, from the results of a job in another."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from contracts.errors import InvalidRequest, ItemFailed, SinkUnavailable
from contracts.jobs import JobCounts
from contracts.names import Task
from contracts.sinks import FileSink, SqlSink
from producer.results import ResultReader
from producer.writing import Writer, open_sink
from storage import jobs, models
from storage.database import Database
from tests.jobs import claimed, execute, finish, make_target, query, store, submit
from tests.results import Cut, Notes, StoredResults, model_of

LEASES = 5
LABELS = [[{"label": "good", "score": 0.75}], None, [{"label": "bad", "score": 0.5}]]


@pytest.fixture(scope="module")
def sink_url(make_database: Callable[..., str]) -> str:
    return make_database()


@pytest.fixture
def sink(sink_url: str) -> Iterator[Database]:
    """The database that is written to: with the type vector, as it is one of ours."""
    with Database(sink_url) as database:
        yield database
        execute(database, "DROP TABLE IF EXISTS scores")


def writer(database: Database, **more: Any) -> Writer:
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return open_sink(SqlSink(url=url, **({"table": "scores"} | more)))


def rows(database: Database, columns: str = "*", order: str = "id") -> list[tuple[Any, ...]]:
    return [tuple(row) for row in query(database, f"SELECT {columns} FROM scores ORDER BY {order}")]


def test_a_table_that_is_not_there_is_made(sink: Database) -> None:
    results = StoredResults(LABELS, Task.CLASSIFY, ids=["a", "b", "c"])
    writer(sink).check(results.target.model, {})
    assert query(sink, "SELECT to_regclass('scores')")[0][0] is None
    assert writer(sink).write(results, None, Notes()) == 3
    assert rows(sink, "id, output, label, score, error_code, error_message, model") == [
        ("a", LABELS[0], "good", 0.75, None, None, "model@3"),
        ("b", None, None, None, "too_long", "it is long", "model@3"),
        ("c", LABELS[2], "bad", 0.5, None, None, "model@3"),
    ]
    first = rows(sink, "updated_at")
    writer(sink).check(results.target.model, {})
    later = StoredResults([None, LABELS[0], LABELS[2]], Task.CLASSIFY, ids=["a", "b", "c"])
    assert writer(sink).write(later, None, Notes()) == 3
    assert rows(sink, "id, label, error_code") == [("a", None, "too_long"), ("b", "good", None), ("c", "bad", None)]
    assert [new > old for new, old in zip(rows(sink, "updated_at"), first, strict=True)] == [True, True, False]


@pytest.mark.parametrize(
    "kind", ["vector(4)", "halfvec(4)", "vector", "real[]", "double precision[]", "jsonb", "json", "text"]
)
def test_vectors_in_columns_of_every_kind(sink: Database, kind: str) -> None:
    execute(sink, f"CREATE TABLE scores (id bigint PRIMARY KEY, embedding {kind})")
    vector = np.array([0.5, -1, 0, 2], np.float32)
    results = StoredResults([vector, None, vector * 2], ids=["7", "8", None])
    table = writer(sink, columns={"embedding": "output"})
    table.check(results.target.model, results.target.params)
    assert table.write(results, None, Notes()) == 2
    as_json = "embedding::jsonb" if kind in ("jsonb", "json", "text") else "to_jsonb(embedding::real[])"
    assert rows(sink, f"id, {as_json}") == [(2, (vector * 2).tolist()), (7, vector.tolist())]


def test_a_table_of_vectors_is_searchable(sink: Database) -> None:
    results = StoredResults(list(np.eye(3, dtype=np.float32)), ids=["x", "y", "z"])
    writer(sink).write(results, None, Notes())
    assert rows(sink, "id", "output <-> '[0,1,0]' LIMIT 1") == [("y",)]
    execute(sink, "CREATE INDEX ON scores USING hnsw (output vector_cosine_ops)")
    with pytest.raises(InvalidRequest, match=r"table scores, column output: it is vector\(3\), and the model gives 2"):
        writer(sink).write(StoredResults([np.zeros(2, np.float32)]), None, Notes())


@pytest.mark.parametrize(
    ("kind", "given"), [("bit(16)", "0000000111111111"), ("bytea", "\\x01ff"), ("jsonb", "[1, 255]")]
)
def test_bits_in_columns_of_every_kind(sink: Database, kind: str, given: str) -> None:
    execute(sink, f"CREATE TABLE scores (id text PRIMARY KEY, output {kind})")
    results = StoredResults([np.array([1, 255], np.uint8)], params={"precision": "ubinary"})
    writer(sink).check(results.target.model, results.target.params)
    writer(sink).write(results, None, Notes())
    assert rows(sink, "output::text") == [(given,)]


@pytest.mark.parametrize(
    ("task", "output", "given"),
    [
        (Task.RERANK, [{"index": 4, "score": 2.5}, {"index": 0, "score": -1.0}], {"index": 4, "score": 2.5}),
        (
            Task.GENERATE,
            {"text": "a\tb\\N\n", "finish_reason": "stop", "prompt_tokens": 3, "new_tokens": 5},
            {"text": "a\tb\\N\n", "finish_reason": "stop", "prompt_tokens": 3, "new_tokens": 5},
        ),
        (
            Task.SCORE,
            {"log_likelihood": -12.5, "tokens": 4, "perplexity": 22.76},
            {"log_likelihood": -12.5, "tokens": 4, "perplexity": 22.76},
        ),
    ],
    ids=["rerank", "generate", "score"],
)
def test_fields_of_every_task(sink: Database, task: Task, output: Any, given: dict[str, Any]) -> None:
    writer(sink).write(StoredResults([output], task), None, Notes())
    assert rows(sink, ", ".join(f'"{name}"' for name in given)) == [tuple(given.values())]


def test_a_table_of_another_schema_and_names_that_need_quotes(sink: Database) -> None:
    execute(sink, 'CREATE SCHEMA "My Shop"')
    execute(sink, 'CREATE TABLE "My Shop"."Re views" ("the ""id""" uuid PRIMARY KEY, "100%" text)')
    key = "0199f0e4-8c00-7000-8000-00000000000a"
    table = writer(sink, table="My Shop.Re views", columns={'the "id"': "id", "100%": "label"})
    table.check(model_of(Task.CLASSIFY), {})
    table.write(StoredResults(LABELS[:1], Task.CLASSIFY, ids=[key]), None, Notes())
    assert [tuple(map(str, row)) for row in query(sink, 'SELECT * FROM "My Shop"."Re views"')] == [(key, "good")]
    execute(sink, 'DROP SCHEMA "My Shop" CASCADE')


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id text, label text", "table scores, column id: make it the primary key or give it a unique index"),
        ("id text PRIMARY KEY, score integer", "column score: it is integer and cannot take score, which is a number"),
        ("id text PRIMARY KEY, label text, who text NOT NULL", "column who: it is NOT NULL and gets no value"),
        ("id text PRIMARY KEY, label text GENERATED ALWAYS AS (upper(id)) STORED", "table scores of .*label"),
    ],
)
def test_another_schema_is_refused_before_scoring(sink: Database, table: str, message: str) -> None:
    execute(sink, f"CREATE TABLE scores ({table})")
    with pytest.raises(InvalidRequest, match=message):
        writer(sink).check(model_of(Task.CLASSIFY), {})


def test_a_partial_unique_index_is_none(sink: Database) -> None:
    execute(sink, "CREATE TABLE scores (id text, label text)")
    execute(sink, "CREATE UNIQUE INDEX ON scores (id) WHERE label IS NULL")
    with pytest.raises(InvalidRequest, match="column id: make it the primary key"):
        writer(sink).check(model_of(Task.CLASSIFY), {})
    execute(sink, "CREATE UNIQUE INDEX ON scores (id)")
    writer(sink).check(model_of(Task.CLASSIFY), {})


def test_who_may_not_write_and_who_is_not_there(sink: Database) -> None:
    execute(sink, "CREATE TABLE scores (id text PRIMARY KEY, label text)")
    execute(sink, "CREATE ROLE reader LOGIN PASSWORD 'hush'")
    execute(sink, "GRANT SELECT ON scores TO reader")
    url = sink.url.set(drivername="postgresql", username="reader", password="hush").render_as_string(False)
    try:
        with pytest.raises(
            InvalidRequest, match=r"table scores of .*reader.*permission denied for table scores"
        ) as caught:
            open_sink(SqlSink(url=url, table="scores")).check(model_of(Task.CLASSIFY), {})
        assert "hush" not in str(caught.value)
    finally:
        execute(sink, "DROP OWNED BY reader")
        execute(sink, "DROP ROLE reader")
    for url in ("postgresql://me:hush@127.0.0.1:9/name", "postgresql://me@127.0.0.1:9/name?password=hush"):
        with pytest.raises(SinkUnavailable, match=r"table scores of .*127.0.0.1:9/.* cannot be used now") as away:
            open_sink(SqlSink(url=url, table="scores")).check(model_of(Task.CLASSIFY), {})
        assert "hush" not in str(away.value)


def test_a_server_that_goes_away_midway(sink: Database) -> None:
    results = StoredResults([[{"label": f"l{n}", "score": 0.0}] for n in range(50)], Task.CLASSIFY)
    kept = Notes()

    def note(written: dict[str, Any], count: int) -> None:
        kept(written, count)
        if len(kept.kept) == 2:
            query(
                sink,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )

    table = writer(sink, rows_per_transaction=10)
    with pytest.raises(SinkUnavailable, match=r"table scores of .* cannot be used now: terminating connection"):
        table.write(results, None, note)
    assert rows(sink, "count(*)", "1") == [(20,)]
    assert table.write(results, kept.last, Notes()) == 50
    assert rows(sink, "count(*), count(DISTINCT label)", "1") == [(50, 50)]


def test_a_table_that_is_full_of_rules(sink: Database) -> None:
    """What a row breaks names the table, and no value of a row."""
    execute(sink, "CREATE TABLE scores (id text PRIMARY KEY, score real CHECK (score < 0.7))")
    with pytest.raises(
        InvalidRequest, match=r'table scores of .*violates check constraint "scores_score_check"$'
    ) as caught:
        writer(sink).write(StoredResults(LABELS, Task.CLASSIFY), None, Notes())
    assert "0.75" not in str(caught.value)
    assert rows(sink) == []


@pytest.fixture(scope="module")
def scored(make_database: Callable[..., str]) -> Iterator[ResultReader]:
    """The results of a job of 2,500 items, of which one a shard failed."""
    with Database(make_database()) as database:
        target_id = make_target(database)
        job_id = submit(database, target_id, [f"text {n}" for n in range(2500)], per_shard=2500 // LEASES)
        for seed in range(LEASES):
            lease = claimed(database)
            bad = {lease.input_ids[7]: ItemFailed("too_long", "it is long")}
            good = [input_id for input_id in lease.input_ids if input_id not in bad]
            outputs = np.random.default_rng(seed).random((len(good), 16), np.float32)
            store(database, target_id, lease.shard_id, good, outputs=outputs)
            finish(database, lease, bad)
        with database.transaction() as connection:
            counts: JobCounts = jobs.get(connection, job_id).counts
            target = models.get_target(connection, target_id)
        assert (counts.items, counts.failed) == (2500, LEASES)
        yield ResultReader(database, job_id, target, counts, None)


@pytest.mark.parametrize("start", [0, 1, 999, 1000, 1001, 2499, 2500])
def test_reading_begins_at_a_position(scored: ResultReader, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.results.PAGE_ITEMS", 1000)
    schema = scored.schema()
    batches = list(scored.batches(schema, start))
    assert [n for batch in batches for n in batch["position"].to_pylist()] == list(range(start, 2500))
    assert [batch["position"][-1].as_py() for batch in batches if batch["position"][-1].as_py() < 2499] == [
        end for end in (999, 1999) if end >= start
    ]


@pytest.mark.parametrize("cut_after", [1, 2, 3])
def test_a_job_cut_and_resumed(
    scored: ResultReader, sink: Database, cut_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.results.PAGE_ITEMS", 700)
    cut = Notes(cut_after, before=True)
    with pytest.raises(Cut):
        writer(sink, rows_per_transaction=1000).write(scored, None, cut)
    assert writer(sink, rows_per_transaction=1000).write(scored, cut.last, Notes()) == 2500
    found = {row[0]: row[1:] for row in rows(sink, "id, output::real[], error_code")}
    expected = {str(item.position): item for item in scored.items()}
    assert found.keys() == expected.keys()
    for key, (output, code) in found.items():
        assert (code, output is None) == ((expected[key].error.code, True) if expected[key].error else (None, False))
        assert output is None or np.array_equal(np.array(output, np.float32), expected[key].output)


def test_the_same_to_a_file(scored: ResultReader, tmp_path: Any) -> None:
    url = str(tmp_path / "a.jsonl.zst")
    assert open_sink(FileSink(url=url)).write(scored, None, Notes()) == 2500
    assert os.listdir(tmp_path) == ["a.jsonl.zst"]
