"""`client.run` and `client.resume`: rows of any source into any sink, through a worker with a fake model."""

import gzip
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from benchmarks.weights import MINILM
from contracts.errors import (
    DatabaseUnavailable,
    DuplicateCustomId,
    EmptyJob,
    InvalidInput,
    InvalidRequest,
    JobCancelled,
    WrongState,
)
from contracts.runs import RunProgress
from contracts.states import RunState
from producer import Client
from producer.runs.watcher import Watcher
from storage import runs
from storage.secrets import ensure_key_file
from tests.conftest import Mill

HOOK = "https://receiver.example/runs"


@pytest.fixture(autouse=True)
def models(running_mill: Mill, client: Client) -> None:
    ensure_key_file(running_mill.folder)
    client.models.add("vectors", "fake:?dimensions=4")
    client.models.add("labels", "fake:", task="classify")


@pytest.fixture
def server(client: Client) -> str:
    """A database that source and sink tables are in: ours will do."""
    return str(client.settings.database_url)


def expected(client: Client, pairs: Sequence[tuple[str, str]], model: str = "vectors") -> dict[str, Any]:
    """What the engine gives, by id."""
    job = client.submit(model, pairs).wait(timeout=300)
    return {str(result.custom_id): result.output for result in job.results()}


def rows(client: Client, query: str) -> list[Any]:
    with client._database.transaction() as connection:
        return list(connection.execute(text(query)))


def pairs_of(prefix: str, count: int) -> list[tuple[str, str]]:
    return [(f"{prefix}-{number}", f"{prefix} text {number % (count - 3)}") for number in range(count)]


def write_parquet(path: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    pq.write_table(pa.table({"id": [a for a, _ in pairs], "input": [b for _, b in pairs]}), path)
    return path


def test_parquet_to_parquet(client: Client, tmp_path: Path) -> None:
    pairs = pairs_of("parquet", 100)
    source, sink = write_parquet(tmp_path / "in.parquet", pairs), tmp_path / "out.parquet"
    report = tmp_path / "report-{date}.html"
    run = client.run(source, "vectors", sink, task="embed", metadata={"night": 3}, report=report)

    table = pq.read_table(sink)
    assert table["custom_id"].to_pylist() == [custom_id for custom_id, _ in pairs]
    outputs = expected(client, pairs)
    assert all(np.array_equal(row["output"], outputs[row["custom_id"]]) for row in table.to_pylist())
    assert run.state is RunState.SUCCEEDED
    assert run.progress == RunProgress(
        rows_read=100, bytes_read=source.stat().st_size, rows=100, bytes=source.stat().st_size, rows_written=100
    )
    assert run.changes is not None
    assert (run.changes.rows, run.changes.new, run.changes.computed, run.changes.cached) == (100, 100, 97, 0)
    job = client.job(str(run.job_id))
    assert (job.info.priority, job.info.metadata, job.info.callback_url) == ("bulk", {"night": 3}, None)
    assert client.resume(run.id) == run
    assert run.report == str(tmp_path / f"report-{run.created_at.astimezone().date()}.html")
    assert "vectors" in Path(run.report).read_text()


def test_packed_json_lines_to_a_folder(client: Client, tmp_path: Path) -> None:
    pairs = pairs_of("folder", 50)
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps({"id": a, "input": b}) + "\n" for a, b in pairs)
    sink = {"kind": "folder", "url": str(tmp_path / "out"), "rows_per_part": 20}
    run = client.run(tmp_path / "in.jsonl.gz", "vectors", sink)
    table = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet")))
    assert table["custom_id"].to_pylist() == [custom_id for custom_id, _ in pairs]
    assert run.progress.rows_written == 50


def test_a_table_to_a_table_and_the_second_night_computes_what_changed(client: Client, server: str) -> None:
    client.webhooks.add(HOOK)
    with client._database.transaction() as connection:
        connection.execute(text("CREATE TABLE reviews (id bigint PRIMARY KEY, title text, body text)"))
        connection.execute(
            text("INSERT INTO reviews SELECT n, 'title ' || n, 'body ' || n FROM generate_series(1, 200) AS n")
        )
    source = {
        "url": server,
        "query": "SELECT id, title, body FROM reviews ORDER BY id",
        "columns": {"template": "{title}: {body}"},
    }
    sink = {"url": server, "table": "review_labels"}
    first = client.run(source, "labels", sink, callback_url=HOOK, params={"top_k": 1})
    assert first.changes is not None
    assert (first.changes.computed, first.changes.failed) == (200, 0)
    with client._database.transaction() as connection:
        connection.execute(text("UPDATE reviews SET body = 'new ' || id WHERE id % 100 = 0"))
    second = client.run(source, "labels", sink, callback_url=HOOK, params={"top_k": 1})
    assert second.changes is not None
    assert (second.changes.computed, second.changes.cached) == (2, 198)

    stored = rows(client, "SELECT * FROM review_labels ORDER BY id::bigint")
    assert len(stored) == 200
    texts = [(str(n), f"title {n}: {'new' if n % 100 == 0 else 'body'} {n}") for n in range(1, 201)]
    job = client.submit("labels", texts, params={"top_k": 1}).wait(timeout=300)
    wanted = {result.custom_id: result.output for result in job.results()}
    assert {str(row.id): row.output for row in stored} == wanted
    events = rows(client, f"SELECT event, run_id FROM deliveries WHERE url = '{HOOK}' ORDER BY created_at")
    assert [tuple(event) for event in events] == [("run.completed", first.id), ("run.completed", second.id)]


def test_a_batch_file_to_output_and_errors(client: Client, tmp_path: Path) -> None:
    client.models.add("poisoned", "fake:?fail=poison")
    texts = {"a": "one", "b": "poison", "c": "three"}
    requests = [
        {"custom_id": key, "method": "POST", "url": "/v1/embeddings", "body": {"model": "any", "input": value}}
        for key, value in texts.items()
    ]
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    run = client.run(
        {"kind": "openai", "url": str(tmp_path / "batch.jsonl")},
        "poisoned",
        {"kind": "openai", "url": str(tmp_path / "out.jsonl")},
    )
    output = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    errors = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in output] == ["a", "c"]
    assert len(output[0]["response"]["body"]["data"][0]["embedding"]) == 384
    assert [line["custom_id"] for line in errors] == ["b"]
    assert run.changes is not None
    assert run.changes.failed == 1


def failed(client: Client) -> tuple[str, str, str | None]:
    """How the newest run ended."""
    (row,) = rows(client, "SELECT state, error_code, job_id FROM runs ORDER BY created_at DESC LIMIT 1")
    return row.state, row.error_code, row.job_id


def test_a_bad_row_stops_the_run_before_anything_is_scored_or_is_left_out(client: Client, tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "a", "input": "fine"}\n{"id": "b"}\n{"id": "c", "input": "good"}\n')
    before = rows(client, "SELECT count(*) FROM jobs")
    with pytest.raises(InvalidInput, match=r"in\.jsonl, line 2: "):
        client.run(source, "vectors", sink)
    assert failed(client) == ("failed", "invalid_input", None)
    assert rows(client, "SELECT count(*) FROM jobs") == before
    assert not sink.exists()

    left_out: list[str] = []

    class Told(Watcher):
        def leaves_out(self, error: InvalidInput) -> None:
            left_out.append(error.where)

    run = client.run(source, "vectors", sink, on_bad="skip", progress=Told())
    assert [json.loads(line)["id"] for line in sink.read_text().splitlines()] == ["a", "c"]
    assert (run.progress.bad, left_out) == (1, ["in.jsonl, line 2"])
    assert run.changes is not None
    assert run.changes.bad == 1


def test_what_cannot_be_scored_fails_the_run_and_leaves_no_job(client: Client, server: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("")
    jobs = rows(client, "SELECT count(*) FROM jobs")
    with pytest.raises(EmptyJob):
        client.run(source, "vectors", tmp_path / "out.jsonl")
    assert failed(client)[:2] == ("failed", "empty_job")
    source.write_text('{"id": "a", "input": "one"}\n{"id": "a", "input": "two"}\n')
    with pytest.raises(DuplicateCustomId):
        client.run(source, "vectors", tmp_path / "out.jsonl")
    with pytest.raises(InvalidRequest, match="computes embed"):
        client.run(source, "vectors", tmp_path / "out.jsonl", task="classify")
    with client._database.transaction() as connection:
        connection.execute(text("CREATE TABLE other_columns (key text)"))
    with pytest.raises(InvalidRequest, match="other_columns"):
        client.run(source, "vectors", {"url": server, "table": "other_columns"})
    client.models.add("minilm", str(MINILM))
    with client._database.transaction() as connection:
        connection.execute(text("CREATE TABLE too_wide (id text PRIMARY KEY, output vector(768))"))
    for params, kind in (({}, "vector"), ({"precision": "ubinary"}, "bit")):
        with pytest.raises(InvalidRequest, match=rf"too_wide, column output: it is {kind}\(768\), .* gives 384"):
            client.run(source, "minilm", {"url": server, "table": "too_wide"}, params=params)
        with client._database.transaction() as connection:
            connection.execute(text("ALTER TABLE too_wide ALTER output TYPE bit(768) USING NULL"))
    assert failed(client)[:2] == ("failed", "invalid_request")
    assert rows(client, "SELECT count(*) FROM jobs") == jobs
    assert rows(client, "SELECT count(*) FROM other_columns") == [(0,)]


def test_a_report_that_cannot_be_written_at_the_end_leaves_the_run_whole(client: Client, tmp_path: Path) -> None:
    source, sink = write_parquet(tmp_path / "in.parquet", pairs_of("whole", 20)), tmp_path / "out.parquet"
    (tmp_path / "reports").mkdir()

    class Moving(Watcher):
        def writes(self, rows: int, total: int) -> None:
            (tmp_path / "reports").rmdir()

    run = client.run(source, "vectors", sink, report=tmp_path / "reports" / "r.html", progress=Moving())
    assert pq.read_metadata(sink).num_rows == 20
    assert (run.state, run.report, run.error_code) == (RunState.SUCCEEDED, None, None)
    assert str(run.error_message).startswith("no report was written: ")
    assert "reports; make it first" in str(run.error_message)
    assert client.resume(run.id) == run


def test_a_sink_is_not_its_own_source(client: Client, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", pairs_of("own", 10))
    content = source.read_bytes()
    for sink in (source, f"{tmp_path}/", tmp_path / "more.parquet"):
        with pytest.raises(InvalidRequest, match=r"the sink .* is of the source .*: write it elsewhere"):
            client.run(source if sink == source else tmp_path, "vectors", sink)
    assert source.read_bytes() == content


def test_rows_of_which_some_have_ids_go_to_no_table(client: Client, tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "in.db"
    source.write_text('"one"\n"two"\n{"id": "0", "input": "three"}\n{"id": "x"}\n')
    with pytest.raises(InvalidInput, match=r"in\.jsonl, line 3: the row has an id, and those before it have none"):
        client.run(source, "vectors", {"url": f"sqlite:///{sink}", "table": "scores"}, on_bad="skip")
    assert failed(client) == ("failed", "invalid_input", None)
    assert client.run(source, "vectors", tmp_path / "out.jsonl", on_bad="skip").progress.rows_written == 3
    source.write_text('{"id": "0", "input": "three"}\n{"id": "1"}\n"one"\n')
    with pytest.raises(InvalidInput, match=r"line 3: the row has no id, and those before it have"):
        client.run(source, "vectors", {"url": f"sqlite:///{sink}", "table": "scores"}, on_bad="skip")


def test_rows_without_the_id_that_was_named_go_to_no_table(client: Client, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"review_id": 7, "input": "seven"}\n')
    spec = {"url": str(source), "columns": {"id": "reviewId", "input": "input"}}
    with pytest.raises(InvalidInput, match=r"in\.jsonl, line 1: the row has no 'reviewId', by which a table finds it"):
        client.run(spec, "vectors", {"url": f"sqlite:///{tmp_path}/in.db", "table": "scores"})
    assert failed(client) == ("failed", "invalid_input", None)


class Cut(Watcher):
    """Ctrl-C, when so many rows were read or written."""

    def __init__(self, *, read: int | None = None, written: int | None = None, scoring: bool = False) -> None:
        self._read, self._written, self._scoring = read, written, scoring

    def reads(self, progress: RunProgress) -> None:
        if self._read is not None and progress.rows_read >= self._read:
            raise KeyboardInterrupt

    def scores(self) -> Any:
        if self._scoring:
            raise KeyboardInterrupt
        return super().scores()

    def writes(self, rows: int, total: int) -> None:
        if self._written is not None and rows >= self._written:
            raise KeyboardInterrupt


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.incoming.CHUNK_LINES", 100)
    monkeypatch.setattr("producer.runs.receiving.LOOK_ROWS", 50)


def interrupted(client: Client, source: Path, sink: Any, cut: Cut) -> Any:
    with pytest.raises(KeyboardInterrupt):
        client.run(source, "vectors", sink, progress=cut)
    (row,) = rows(client, "SELECT id, state, job_id, token FROM runs ORDER BY created_at DESC LIMIT 1")
    assert row.token is None
    return row


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("cut", [Cut(read=50), Cut(read=450), Cut(scoring=True), Cut(written=1)])
def test_ctrl_c_leaves_a_run_that_is_resumed_without_a_gap(client: Client, tmp_path: Path, cut: Cut) -> None:
    pairs = pairs_of("cut", 520)
    source, sink = write_parquet(tmp_path / "in.parquet", pairs), tmp_path / "out.parquet"
    row = interrupted(client, source, sink, cut)
    assert not sink.exists()
    run = client.resume(str(row.id))
    assert pq.read_table(sink)["custom_id"].to_pylist() == [custom_id for custom_id, _ in pairs]
    assert run.job_id == row.job_id or row.job_id is None
    assert client.job(str(run.job_id)).counts.items == 520


@pytest.mark.usefixtures("small_chunks")
def test_a_source_that_changed_since_the_cut_is_read_anew(client: Client, tmp_path: Path) -> None:
    source, sink = write_parquet(tmp_path / "in.parquet", pairs_of("old", 500)), tmp_path / "out.parquet"
    row = interrupted(client, source, sink, Cut(read=450))
    assert rows(client, f"SELECT items > 0 FROM jobs WHERE id = '{row.job_id}'") == [(True,)]
    pairs = pairs_of("new", 300)
    write_parquet(source, pairs)
    run = client.resume(row.id)
    assert run.job_id != row.job_id
    assert rows(client, f"SELECT count(*) FROM items WHERE job_id = '{row.job_id}'") == [(0,)]
    assert pq.read_table(sink)["custom_id"].to_pylist() == [custom_id for custom_id, _ in pairs]


@pytest.mark.usefixtures("small_chunks")
def test_a_run_goes_on_where_the_lines_end_that_a_crash_of_postgres_left(client: Client, tmp_path: Path) -> None:
    pairs = pairs_of("lost", 520)
    source, sink = write_parquet(tmp_path / "in.parquet", pairs), tmp_path / "out.parquet"

    class Crash(Watcher):
        """Takes back what was committed behind the first lines, as a log that was not on the disk."""

        kept: tuple[Any, int, bytes] | None = None
        lost = False

        def reads(self, progress: RunProgress) -> None:
            with client._database.transaction() as connection:
                job_id, items, digest = connection.exec_driver_sql(
                    "SELECT id, items, content_digest FROM jobs ORDER BY created_at DESC LIMIT 1"
                ).one()
                if self.kept is None and items > 0:
                    self.kept = job_id, items, digest
                if self.kept is not None and items > self.kept[1] and not self.lost:
                    self.lost = True
                    values = {"id": job_id, "items": self.kept[1], "digest": self.kept[2]}
                    # The job first: a chunk that is under way holds it.
                    connection.execute(
                        text("UPDATE jobs SET items = :items, content_digest = :digest WHERE id = :id"), values
                    )
                    connection.execute(text("DELETE FROM items WHERE job_id = :id AND position >= :items"), values)

    crash = Crash()
    with pytest.raises(DatabaseUnavailable, match="lines are left, as Postgres crashed"):
        client.run(source, "vectors", sink, progress=crash)
    assert crash.lost
    (row,) = rows(client, "SELECT id, job_id FROM runs ORDER BY created_at DESC LIMIT 1")
    run = client.resume(row.id)
    assert run.job_id == row.job_id
    assert pq.read_table(sink)["custom_id"].to_pylist() == [custom_id for custom_id, _ in pairs]


@pytest.mark.usefixtures("small_chunks")
def test_a_run_that_asks_for_something_else_than_before_the_cut_reads_anew(client: Client, tmp_path: Path) -> None:
    pairs = pairs_of("asked", 500)
    source, sink = write_parquet(tmp_path / "in.parquet", pairs), tmp_path / "out.parquet"
    row = interrupted(client, source, sink, Cut(read=450))
    with client._database.transaction() as connection:  # as the options of a batch file that is another by now
        connection.execute(
            text("UPDATE runs SET spec = jsonb_set(spec, '{params}', '{\"precision\": \"float16\"}') WHERE id = :id"),
            {"id": row.id},
        )
    assert client.resume(row.id).job_id != row.job_id
    assert pq.read_schema(sink).field("output").type.value_type == pa.float16()


@pytest.mark.usefixtures("small_chunks")
def test_a_source_that_changes_while_it_is_read_ends_the_run(client: Client, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f'{{"id": "{n}", "input": "change {n}"}}\n' for n in range(300)))

    class Changing(Watcher):
        def reads(self, progress: RunProgress) -> None:
            if progress.rows_read == 201:
                with source.open("a") as stream:
                    stream.write('{"id": "late", "input": "late"}\n')

    with pytest.raises(InvalidInput, match=r"in\.jsonl"):
        client.run(source, "vectors", tmp_path / "out.jsonl", progress=Changing())
    assert failed(client) == ("failed", "invalid_input", None)


def test_who_cannot_go_on_is_told_why(client: Client, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", pairs_of("held", 10))
    going = threading.Event()
    over = threading.Event()

    class Slow(Watcher):
        def reads(self, progress: RunProgress) -> None:
            going.set()
            over.wait(30)

    thread = threading.Thread(target=lambda: client.run(source, "vectors", tmp_path / "a.csv", progress=Slow()))
    thread.start()
    assert going.wait(30)
    (row,) = rows(client, "SELECT id FROM runs ORDER BY created_at DESC LIMIT 1")
    with pytest.raises(WrongState, match="another process"):
        client.resume(row.id)
    over.set()
    thread.join()

    class Cancelling(Watcher):
        def seals(self) -> None:
            (row,) = rows(client, "SELECT id FROM runs ORDER BY created_at DESC LIMIT 1")
            with client._database.transaction() as connection:
                runs.cancel(connection, row.id)

    with pytest.raises(JobCancelled, match="was cancelled"):
        client.run(source, "vectors", tmp_path / "b.csv", progress=Cancelling())
    (row,) = rows(client, "SELECT id FROM runs ORDER BY created_at DESC LIMIT 1")
    with pytest.raises(WrongState, match="begin a new one"):
        client.resume(row.id)
    assert not (tmp_path / "b.csv").exists()


def test_memory_does_not_grow_with_the_rows(running_mill: Mill, tmp_path: Path) -> None:
    rows = 300_000
    texts = [f"one of a thousand texts of a usual length, which many rows share: {n % 1000}" for n in range(rows)]
    pq.write_table(pa.table({"id": [str(n) for n in range(rows)], "input": texts}), tmp_path / "in.parquet")
    done = running_mill.run_client(f"""
        run = client.run("{tmp_path}/in.parquet", "vectors", "{tmp_path}/out.parquet")
        (peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(run.progress.rows_written, int(peak) // 1024)
    """)
    assert done.returncode == 0
    written, megabytes = map(int, done.stdout.split())
    assert written == rows
    assert megabytes < 450  # 180 of which are Python, Arrow and the database's client
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == rows
