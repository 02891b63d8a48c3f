import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

import producer
from benchmarks.weights import MINILM
from contracts.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    DuplicateCustomId,
    EmptyJob,
    IdempotencyConflict,
    InvalidInput,
    InvalidParams,
    InvalidRequest,
    JobFailed,
    JobNotFound,
    ModelRefused,
    SchemaMismatch,
    UnknownModel,
    UnknownTask,
    WaitTimeout,
    WrongState,
)
from contracts.states import JobState
from producer import Client, ItemError
from producer.incoming import CHUNK_LINES
from storage.database import Database
from tests.conftest import Mill


@pytest.fixture(autouse=True)
def models(client: Client) -> None:
    client.models.add("vectors", "fake:")
    client.models.add("labels", "fake:", task="classify")
    client.models.add("poisoned", "fake:?fail=poison&nan=hollow")
    client.models.add("nobody", "fake:", pool="nobody")


def rows(client: Client, query: str) -> int:
    with client._database.transaction() as connection:
        return int(connection.execute(text(query)).scalar_one())


def test_what_is_exported() -> None:
    exported = {"Check", "Client", "CompressionJob", "ItemError", "Job", "Result", "read", "verify_webhook"}
    assert set(producer.__all__) == exported
    assert all(getattr(producer, name) is not None for name in producer.__all__)


def test_inputs_come_back_in_order_with_what_was_computed(client: Client) -> None:
    inputs = ["one", {"text": "a mapping"}, ("my-id", "two"), "one", (7, "three")]
    job = client.submit("vectors", inputs, metadata={"night": 3}).wait(timeout=300)
    found = list(job.results())
    assert job.state is JobState.SUCCEEDED
    assert job.state == "succeeded"
    assert [result.position for result in found] == [0, 1, 2, 3, 4]
    assert [result.custom_id for result in found] == [None, None, "my-id", None, "7"]
    assert all(result.output.shape == (384,) and result.output.dtype == np.float32 for result in found)
    assert np.array_equal(found[0].output, found[3].output)
    assert not np.array_equal(found[0].output, found[2].output)
    assert not any(result.cached or result.error for result in found)
    assert (job.counts.items, job.counts.distinct, job.counts.computed) == (5, 4, 4)
    assert job.info.metadata == {"night": 3}
    again = client.submit("vectors", inputs).wait(timeout=300)
    assert (again.counts.cached, again.counts.computed) == (4, 0)
    assert all(result.cached for result in again.results())
    assert np.array_equal(next(again.results()).output, found[0].output)


def test_structured_outputs_and_parameters(client: Client) -> None:
    job = client.submit("labels", ["some text"], params={"top_k": 1}).wait(timeout=300)
    (result,) = job.results()
    assert len(result.output) == 1
    assert set(result.output[0]) == {"label", "score"}


@pytest.mark.parametrize(("precision", "dtype", "width"), [("float16", np.float16, 384), ("ubinary", np.uint8, 48)])
def test_precisions(client: Client, precision: str, dtype: type, width: int) -> None:
    job = client.submit("vectors", ["a", "b"], params={"precision": precision}).wait(timeout=300)
    assert [(r.output.dtype, r.output.shape) for r in job.results()] == [(np.dtype(dtype), (width,))] * 2
    assert len(job.to_arrow()["output"][0]) == width


def test_an_item_that_fails_fails_alone(client: Client) -> None:
    job = client.submit("poisoned", ["fine", "poison", "hollow", "good", "poison"]).wait(timeout=300)
    errors = [result.error for result in job.results()]
    assert [error and error.code for error in errors] == [None, "engine_error", "non_finite", None, "engine_error"]
    assert isinstance(errors[1], ItemError)
    assert "poison" in errors[1].message
    assert [result.output is None for result in job.results()] == [False, True, True, False, True]
    assert job.state is JobState.SUCCEEDED
    assert (job.counts.computed, job.counts.failed, job.counts.waiting) == (2, 2, 0)
    table = job.to_arrow()
    assert table["output"].null_count == 3
    assert table["error_code"].to_pylist()[1] == "engine_error"


def test_too_long_is_truncated_or_fails_as_asked(client: Client) -> None:
    client.models.add("short", "fake:?limit=8")
    job = client.submit("short", ["word " * 50, "word"]).wait(timeout=300)
    assert [result.truncated for result in job.results()] == [True, False]
    assert job.counts.truncated == 1
    assert client.submit("short", ["word " * 50, "word"]).wait(timeout=300).counts.truncated == 1  # from the cache
    strict = client.submit("short", ["word " * 50, "word"], params={"truncate": False}).wait(timeout=300)
    assert [result.error and result.error.code for result in strict.results()] == ["too_long", None]


def test_files(client: Client, tmp_path: Path) -> None:
    job = client.submit("vectors", [("a", "one"), ("b", "two")]).wait(timeout=300)
    table = pq.read_table(job.write(tmp_path / "out.parquet"))
    assert table["custom_id"].to_pylist() == ["a", "b"]
    assert np.array_equal(table["output"][1].values.to_numpy(), list(job.results())[1].output)
    lines = [json.loads(line) for line in job.write(tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b"]
    assert pyarrow.csv.read_csv(job.write(tmp_path / "out.csv")).num_rows == 2
    assert list(job.to_pandas()["custom_id"]) == ["a", "b"]
    with pytest.raises(InvalidRequest, match=r"\.xls"):
        job.write(tmp_path / "out.xls")


def test_a_new_epoch_computes_afresh_and_versions_are_told_apart(client: Client) -> None:
    client.submit("vectors", ["epoch"]).wait(timeout=300)
    assert client.models.invalidate("vectors").epoch == 2
    assert client.submit("vectors", ["epoch"]).wait(timeout=300).counts.computed == 1
    first = client.models.add("versions", "fake:?dimensions=8")
    assert client.models.add("versions", "fake:?dimensions=8") == first
    second = client.models.add("versions", "fake:?dimensions=16")
    assert (first.version, second.version) == (1, 2)
    assert client.models.get("versions") == second
    assert client.models.get("versions@1") == first
    widths = [next(client.submit(f"versions{at}", ["x"]).wait(timeout=300).results()).output.shape for at in ("@1", "")]
    assert widths == [(8,), (16,)]
    client.models.remove("versions@2")
    assert client.models.get("versions") == first
    assert second not in client.models.list()


def test_the_same_key_gives_the_same_job(client: Client) -> None:
    first = client.submit("vectors", ["k1", "k2"], idempotency_key="night-1")
    assert client.submit("vectors", ["k1", "k2"], idempotency_key="night-1").id == first.id
    with pytest.raises(IdempotencyConflict, match="night-1.*other content"):
        client.submit("vectors", ["k1", "other"], idempotency_key="night-1")
    with pytest.raises(IdempotencyConflict):
        client.submit("vectors", ["k1", "k2"], params={"precision": "float16"}, idempotency_key="night-1")


def test_the_same_key_gives_the_same_job_while_the_first_is_received(client: Client) -> None:
    begun, go = threading.Event(), threading.Event()

    def slowly() -> Iterator[str]:
        yield "r1"
        begun.set()
        assert go.wait(30)
        yield "r2"

    ids = []
    thread = threading.Thread(target=lambda: ids.append(client.submit("vectors", slowly(), idempotency_key="race").id))
    thread.start()
    assert begun.wait(30)
    second = client.submit("vectors", ["r1", "r2"], idempotency_key="race")
    go.set()
    thread.join(30)
    assert ids == [second.id]
    assert rows(client, "SELECT count(*) FROM jobs WHERE state = 'receiving'") == 0


def test_a_submission_that_fails_midway_leaves_nothing(client: Client) -> None:
    before = rows(client, "SELECT count(*) FROM jobs"), rows(client, "SELECT count(*) FROM items")

    def breaks() -> Iterator[str]:
        yield from (f"half {number}" for number in range(CHUNK_LINES + 10))
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        client.submit("vectors", breaks())
    with pytest.raises(InvalidInput, match=r"^item 10,?011: .*NUL"):
        client.submit("vectors", [*(f"half {n}" for n in range(CHUNK_LINES + 10)), "nul \0"])
    with pytest.raises(DuplicateCustomId, match="'a'.* items 1 and 3"):
        client.submit("vectors", [("a", "x"), ("b", "y"), ("a", "z")])
    assert (rows(client, "SELECT count(*) FROM jobs"), rows(client, "SELECT count(*) FROM items")) == before


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"x": float("nan")}, "NaN"),
        ({"x": 2**64}, "64 bits"),
        ({1: "x"}, "key"),
        ("\ud800", "surrogate"),
        ("x" * 100_000_000, "bytes"),
        (3.5, "float"),
        (b"bytes", "bytes"),
    ],
)
def test_bad_items_are_named(client: Client, bad: object, reason: str) -> None:
    with pytest.raises(InvalidInput, match=f"^item 2: .*{reason}"):
        client.submit("vectors", ["fine", bad])
    told: list[InvalidInput] = []
    job = client.submit("vectors", ["fine", bad, "also fine"], on_bad=told.append)
    assert job.counts.items == 2
    assert [error.where for error in told] == ["item 2"]


def test_inputs_are_capped_by_bytes(running_mill: Mill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = "x" * (2**20 - 2)  # with its quotes a megabyte
    source = tmp_path / "texts.jsonl"
    source.write_text(f'"one"\n"{longest}"\n"{longest}x"\n')
    with running_mill.client() as client:
        with pytest.raises(InvalidInput, match=r"item 2: 1,048,577 bytes, .* 1,048,576 \(BATCHMILL_MAX_INPUT_BYTES\)"):
            client.submit("nobody", [longest, {"text": longest}, longest + "x"][::2])
        assert client.check("nobody", [longest, longest + "x"]).bad == 1
        with pytest.raises(InvalidInput, match=r"texts.jsonl, line 3: the line has 1,048,577 bytes, .*: split it"):
            client.submit("nobody", producer.read(source))
    monkeypatch.setenv("BATCHMILL_MAX_INPUT_BYTES", "5")
    with running_mill.client() as client, pytest.raises(InvalidInput, match="texts.jsonl, line 2"):
        client.submit("nobody", producer.read(source))


def test_wrong_types_in_a_file_are_named_by_line(client: Client, tmp_path: Path) -> None:
    """A model of texts takes texts; the file may be long."""
    client.models.add("minilm", str(MINILM), pool="nobody")
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(f'"review {number}"\n' for number in range(1, 70_123)) + '{"input": 5}\n"the last"\n')
    with pytest.raises(InvalidInput, match=r"^reviews.jsonl, line 70123: expected a text, got a number"):
        client.submit("minilm", producer.read(path))
    told: list[InvalidInput] = []
    job = client.submit("minilm", producer.read(path), on_bad=told.append)
    assert [error.where for error in told] == ["reviews.jsonl, line 70123"]
    assert job.counts.items == 70_123
    assert client.check("minilm", producer.read(path)).bad == 1


def test_chats_that_are_none_are_named(client: Client, language_model: Path, tmp_path: Path) -> None:
    client.models.add("speaker", str(language_model), task="generate", pool="nobody")
    good = {"messages": [{"role": "user", "content": "hello"}]}
    bad = {"messages": [*good["messages"], {"role": "tool", "content": "4"}]}
    reason = r"message 1 has the role 'tool', and a chat knows system, user, assistant: generate takes a prompt, or"
    with pytest.raises(InvalidInput, match=f"^item 3: {reason}"):
        client.submit("speaker", ["a prompt", good, bad])
    path = tmp_path / "chats.jsonl"
    path.write_text(
        "".join(json.dumps({"id": name, "input": value}) + "\n" for name, value in [("a", good), ("b", bad)])
    )
    with pytest.raises(InvalidInput, match=f"^chats.jsonl, line 2: {reason}"):
        client.submit("speaker", producer.read(path))
    told: list[InvalidInput] = []
    job = client.submit("speaker", producer.read(path), on_bad=told.append)
    assert [error.where for error in told] == ["chats.jsonl, line 2"]
    assert job.counts.items == 1


def test_a_database_that_goes_away_midway_leaves_nothing_that_counts(
    make_database: Callable[..., str], make_broker: Callable[[], str], tmp_path: Path, database_url: str
) -> None:
    name = database_url.partition("@/")[2].partition("?")[0]

    def allow(connections: bool) -> None:
        with Database(make_database()) as elsewhere, elsewhere.transaction() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {connections}"))
            if not connections:
                backends = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = :name"
                connection.execute(text(backends), {"name": name})

    with Client(database_url=database_url, broker_url=make_broker(), home=tmp_path) as client:
        client.models.add("vectors", "fake:")

        def inputs() -> Iterator[str]:
            yield from (f"item {number}" for number in range(CHUNK_LINES))
            allow(False)
            yield "one more"

        with pytest.raises(DatabaseUnavailable):
            client.submit("vectors", inputs())
        allow(True)
        # What is left of it is removed by maintenance: nobody ever runs what is being received.
        assert {job.state for job in client.jobs()} <= {JobState.RECEIVING}
        assert client.submit("vectors", ["x"]).state is JobState.QUEUED


def test_bad_requests(client: Client) -> None:
    with pytest.raises(EmptyJob):
        client.submit("vectors", [])
    with pytest.raises(InvalidRequest, match="one str: give a list"):
        client.submit("vectors", "a text")
    with pytest.raises(InvalidRequest, match="one dict"):
        client.check("vectors", {"a": 1})
    with pytest.raises(InvalidInput, match="idempotency_key"):
        client.submit("vectors", ["x"], idempotency_key="nul \0")
    with pytest.raises(UnknownModel, match="'nope'.*registered: .*vectors"):
        client.submit("nope", ["x"])
    with pytest.raises(InvalidParams, match=r"colour.*takes precision, truncate"):
        client.submit("vectors", ["x"], params={"colour": 1})
    with pytest.raises(InvalidParams, match="precision"):
        client.submit("vectors", ["x"], params={"precision": "int7"})
    with pytest.raises(InvalidRequest, match="interactive, normal, bulk"):
        client.submit("vectors", ["x"], priority="urgent")
    with pytest.raises(UnknownTask, match="choose one of"):
        client.models.add("x", "fake:", task="dance")
    with pytest.raises(InvalidRequest, match="nf4"):
        client.models.add("x", "fake:", quantization="nf3")
    with pytest.raises(ModelRefused, match="colour"):
        client.models.add("x", "fake:?colour=red")
    with pytest.raises(JobNotFound):
        client.job("not-an-id")
    with pytest.raises(JobNotFound):
        client.job("00000000-0000-0000-0000-000000000000")


def test_the_empty_string_is_an_input(client: Client) -> None:
    assert next(client.submit("vectors", [""]).wait(timeout=300).results()).output is not None


def test_waiting_and_reading_too_early(client: Client) -> None:
    job = client.submit("nobody", ["waits"])
    with pytest.raises(WaitTimeout, match="1 of 1 inputs are left"):
        job.wait(timeout=0.1)
    with pytest.raises(WrongState, match=r"job.wait\(\)"):
        next(job.results())
    assert job.state is JobState.QUEUED
    assert client.jobs(states=["queued"])[0].id == job.id


def test_a_dry_run_writes_nothing(client: Client) -> None:
    client.submit("vectors", ["known", "known too"]).wait(timeout=300)
    tables = ("jobs", "items", "inputs", "targets", "results")
    before = [rows(client, f"SELECT count(*) FROM {table}") for table in tables]
    found = client.check("vectors", ["known", "new", "new", ("i", "a"), ("i", "b"), 5.0])
    assert (found.items, found.bad, found.duplicates, found.cached, found.repeated_ids) == (5, 1, 1, 1, 1)
    assert found.errors[0].where == "item 6"
    assert found.distinct == 4
    assert found.estimated_tokens > 0
    assert found.estimated_seconds is not None
    assert [rows(client, f"SELECT count(*) FROM {table}") for table in tables] == before


def test_a_model_that_does_not_fit_is_refused_with_both_sizes(client: Client) -> None:
    client.models.add("huge", "fake:?memory=900000000000000")
    job = client.submit("huge", ["x"])
    with pytest.raises(JobFailed, match=r"model_too_large.*900,000,000,000,000 bytes.*may take [\d,]+ here"):
        job.wait(timeout=300)
    (result,) = job.results()
    assert result.error is not None
    assert result.error.code == "model_too_large"


def test_no_database_and_wrong_settings(mill: Mill, tmp_path: Path, make_database) -> None:
    broker = mill.environment["BATCHMILL_BROKER_URL"]
    with pytest.raises(DatabaseUnavailable, match=r"postgresql://u:\*\*\*@.*cannot be used now") as caught:
        Client(database_url=f"postgresql://u:secret@/nothing?host={tmp_path}", broker_url=broker)
    assert "secret" not in str(caught.value)
    with pytest.raises(SchemaMismatch, match="batchmill migrate"):
        Client(database_url=make_database(migrated=False), broker_url=broker)
    with pytest.raises(ConfigurationError, match="BATCHMILL_BROKER_URL is not set"):
        Client(database_url="postgresql://localhost/x")
    with Client(database_url=mill.environment["BATCHMILL_DATABASE_URL"], broker_url="kafka://x") as client:
        client.models.add("vectors", "fake:")
        with pytest.raises(ConfigurationError, match="is not a broker"):
            client.submit("vectors", ["x"])
        assert client.jobs() == []


def test_a_submission_without_a_broker_goes_out_when_it_is_back(mill: Mill, tmp_path: Path, caplog) -> None:
    nowhere = f"redis+socket://{tmp_path}/nothing.sock"
    with Client(database_url=mill.environment["BATCHMILL_DATABASE_URL"], broker_url=nowhere, home=tmp_path) as client:
        client.models.add("vectors", "fake:")
        job = client.submit("vectors", ["kept"])
        assert "is kept and goes out when the broker is back" in caplog.text
        assert job.state is JobState.QUEUED
        mill.worker()
        mill.beat()
        assert job.wait(timeout=300).counts.computed == 1
