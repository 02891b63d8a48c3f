"""Runners: processes that carry out what schedules have due, and what becomes of a run whose runner is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sqlalchemy import make_url, text

from contracts.errors import LeaseLost, UnavailableError
from contracts.runs import RunInfo
from contracts.states import RunState
from producer import Client
from producer.runs.bench import Bench
from producer.runs.held import Held
from producer.runs.phases import carry_out
from producer.runs.runner import Runner
from producer.runs.watcher import Watcher
from storage import runs
from storage.secrets import ensure_key_file
from tests.conftest import Mill, wait_until

ROOT = Path(__file__).parents[3]
ROWS, CHUNK = 900, 100

# A runner whose n-th call of a function is its last: SIGKILL, whatever is under way.
DYING = """
import os, signal, sys
import producer.incoming
from tests.faults.crash import wrap
producer.incoming.CHUNK_LINES = {chunk}
left = [{count}]
def last(original):
    def call(*arguments, **named):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)
    return call
wrap({module!r}, {function!r}, last)
from producer.runs.__main__ import main
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def models(running_mill: Mill, client: Client) -> None:
    ensure_key_file(running_mill.folder)
    client.models.add("vectors", "fake:?dimensions=4")


@contextmanager
def running(client: Client) -> Iterator[Runner]:
    """A runner of this process."""
    runner = Runner(Bench(client._database, client._publisher, client.settings))
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        yield runner
    finally:
        runner.leave()
        thread.join()


def rows(client: Client, query: str, **values: Any) -> list[Any]:
    with client._database.transaction() as connection:
        return list(connection.execute(text(query), values))


def get(client: Client, run: RunInfo) -> RunInfo:
    with client._database.transaction() as connection:
        return runs.get(connection, run.id)


def pairs_of(prefix: str) -> list[tuple[str, str]]:
    return [(f"{prefix}-{number}", f"{prefix} text {number}") for number in range(ROWS)]


def write(path: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"id": a, "input": b}) + "\n" for a, b in pairs))
    return path


def schedule(client: Client, name: str, source: Any, sink: Any, **how: Any) -> RunInfo:
    """A run that is due now, of a schedule that is due at no other time while a test runs."""
    client.schedules.add(name, "0 0 29 2 *", source=source, model="vectors", sink=sink, **how)
    return client.schedules.run_now(name)


def check_whole(client: Client, pairs: Sequence[tuple[str, str]], found: Sequence[tuple[str, Any]]) -> None:
    """Each row of the source once and in order, with what the engine gives for it."""
    assert [custom_id for custom_id, _ in found] == [custom_id for custom_id, _ in pairs]
    job = client.submit("vectors", pairs).wait(timeout=300)
    assert all(np.array_equal(result.output, output) for result, (_, output) in zip(job.results(), found, strict=True))


def kill_a_runner(running_mill: Mill, module: str, function: str, count: int) -> None:
    environment = {
        **os.environ,
        **running_mill.environment,
        "BATCHMILL_HOME": str(running_mill.folder),
        "BATCHMILL_LEASE_SECONDS": "1",
    }
    script = DYING.format(chunk=CHUNK, module=module, function=function, count=count)
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize(
    ("state", "module", "function", "count"),
    [
        ("reading", "storage.inputs", "append", 1),
        ("reading", "storage.inputs", "append", 5),
        ("reading", "storage.runs", "scoring", 1),
        ("writing", "storage.runs", "note_written", 2),
        ("writing", "storage.runs", "succeed", 1),
    ],
)
def test_what_a_killed_runner_left_is_gone_on_with(
    client: Client, running_mill: Mill, tmp_path: Path, state: str, module: str, function: str, count: int
) -> None:
    name = f"{function}-{count}"
    pairs = pairs_of(name)
    folder = tmp_path / "out"
    sink = {"kind": "folder", "url": str(folder), "rows_per_part": 200}
    run = schedule(client, name, str(write(tmp_path / "in.jsonl", pairs)), sink)
    kill_a_runner(running_mill, module, function, count)
    cut = get(client, run)
    assert cut.state == state
    arrived = rows(client, "SELECT items FROM jobs WHERE id = :id", id=cut.job_id)
    if function == "append":
        assert arrived == [((count - 1) * CHUNK,)]
    with running(client):
        wait_until(lambda: get(client, run).state.terminal, 60)
    done = get(client, run)
    assert (done.state, done.error_message) == (RunState.SUCCEEDED, None)
    assert done.job_id == cut.job_id
    table = pq.read_table(sorted(folder.glob("*.parquet")))
    check_whole(client, pairs, [(row["custom_id"], row["output"]) for row in table.to_pylist()])


def test_a_table_that_was_half_written_is_written_on(client: Client, running_mill: Mill) -> None:
    server = str(client.settings.database_url)
    with client._database.transaction() as connection:
        connection.execute(text("CREATE TABLE texts (id bigint PRIMARY KEY, input text)"))
        connection.execute(text(f"INSERT INTO texts SELECT n, 'table text ' || n FROM generate_series(1, {ROWS}) AS n"))
    source = {"url": server, "query": "SELECT id, input FROM texts ORDER BY id"}
    run = schedule(client, "table", source, {"url": server, "table": "scored", "rows_per_transaction": 200})
    kill_a_runner(running_mill, "storage.runs", "note_written", 3)
    assert 0 < rows(client, "SELECT count(*) FROM scored")[0][0] < ROWS
    with running(client):
        wait_until(lambda: get(client, run).state.terminal, 60)
    assert rows(client, "SELECT count(*), count(DISTINCT id), count(*) FILTER (WHERE output IS NULL) FROM scored") == [
        (ROWS, ROWS, 0)
    ]
    pairs = [(str(n), f"table text {n}") for n in range(1, ROWS + 1)]
    found = rows(client, "SELECT id::text, output::text FROM scored ORDER BY id::bigint")
    check_whole(client, pairs, [(row[0], np.array(json.loads(row[1]), np.float32)) for row in found])


def test_two_runners_never_carry_out_one_run_at_once(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.runs.runner.POLL_SECONDS", 0.02)
    at_work: dict[Any, int] = {}
    most = [0]
    lock = threading.Lock()

    def counted(bench: Bench, held: Held, watcher: Watcher) -> None:
        with lock:
            at_work[held.run.id] = at_work.get(held.run.id, 0) + 1
            most[0] = max(most[0], at_work[held.run.id])
        try:
            carry_out(bench, held, watcher)
        finally:
            with lock:
                at_work[held.run.id] -= 1

    monkeypatch.setattr("producer.runs.phases.carry_out", counted)
    source = write(tmp_path / "in.jsonl", pairs_of("two")[:50])
    due = [schedule(client, f"two-{n}", str(source), str(tmp_path / f"{n}.parquet")) for n in range(6)]
    with running(client), running(client):
        wait_until(lambda: all(get(client, run).state is RunState.SUCCEEDED for run in due), 60)
    assert most == [1]
    assert len(at_work) == 6


def test_who_lost_his_lease_writes_nothing_more(client: Client, tmp_path: Path) -> None:
    pairs = pairs_of("lost")[:300]
    run = schedule(client, "lost", str(write(tmp_path / "in.jsonl", pairs)), str(tmp_path / "out.parquet"))
    bench = Bench(client._database, client._publisher, client.settings)
    with client._database.transaction() as connection:
        lease = runs.claim(connection, runner="first", lease=timedelta(minutes=1))
        assert lease is not None
        connection.execute(
            text("UPDATE runs SET lease_expires_at = now() - interval '1 s' WHERE id = :id"), {"id": run.id}
        )
    with client._database.transaction() as connection:
        taken = runs.claim(connection, runner="second", lease=timedelta(minutes=1))
        assert taken is not None
        assert (taken.run.id, taken.attempt) == (run.id, 2)
    with pytest.raises(LeaseLost):
        carry_out(bench, Held(client._database, lease, timedelta(minutes=1)), Watcher())
    assert get(client, run).state is RunState.READING
    assert rows(client, "SELECT count(*) FROM jobs WHERE state = 'receiving'") == [(0,)]
    carry_out(bench, Held(client._database, taken, timedelta(minutes=1)), Watcher())
    with running(client):
        wait_until(lambda: get(client, run).state is RunState.SUCCEEDED, 60)


def test_a_runner_leaves_at_sigterm_and_gives_its_run_back(client: Client, running_mill: Mill, tmp_path: Path) -> None:
    query = "SELECT n AS id, 'slow ' || n AS input, pg_sleep(0.001)::text FROM generate_series(1, 200000) AS n"
    source = {"url": str(client.settings.database_url), "query": query}
    run = schedule(client, "leaving", source, str(tmp_path / "out.parquet"))
    process = running_mill._start("producer.runs", tmp_path)
    wait_until(lambda: get(client, run).job_id is not None, 60)
    process.terminate()
    assert process.wait(25) == 0, running_mill.log(process)
    assert rows(client, "SELECT state, token, attempt FROM runs WHERE id = :id", id=run.id) == [("reading", None, 0)]
    client.schedules.remove("leaving")


@pytest.mark.parametrize(
    ("model", "lost", "code"),
    [
        ("fake:?dimensions=5", "model", "unknown_model"),
        ("fake:?dimensions=6", "source", "invalid_input"),
        ("fake:?unloadable=true", "", "job_failed"),
    ],
)
def test_a_run_that_cannot_be_carried_out_fails_with_its_reason(
    client: Client, tmp_path: Path, model: str, lost: str, code: str
) -> None:
    source = write(tmp_path / "in.jsonl", pairs_of(code)[:3])
    client.models.add(f"model-{code}", model)
    client.schedules.add(code, "0 0 29 2 *", source=str(source), model=f"model-{code}", sink=str(tmp_path / "o.csv"))
    if lost == "model":
        client.models.remove(f"model-{code}")
    if lost == "source":
        source.unlink()
    run = client.schedules.run_now(code)
    with running(client):
        wait_until(lambda: get(client, run).state.terminal, 60)
    assert (get(client, run).state, get(client, run).error_code) == (RunState.FAILED, code)
    assert not (tmp_path / "o.csv").exists()


def test_a_run_rests_while_its_sink_does_not_answer(client: Client, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", pairs_of("rests")[:3])
    run = schedule(client, "rests", str(source), {"url": "postgresql://localhost:1/none", "table": "scores"})
    bench = Bench(client._database, client._publisher, client.settings)
    rests = []
    for _ in range(2):
        with client._database.transaction() as connection:
            connection.execute(text("UPDATE runs SET not_before = NULL"))
            lease = runs.claim(connection, runner="test", lease=timedelta(minutes=1))
        assert lease is not None
        with pytest.raises(UnavailableError):
            carry_out(bench, Held(client._database, lease, timedelta(minutes=1)), Watcher())
        query = "SELECT extract(epoch FROM not_before - now()) AS rest, state, token FROM runs WHERE id = :id"
        (row,) = rows(client, query, id=run.id)
        assert (row.state, row.token) == ("reading", None)
        rests.append(float(row.rest))
        assert "cannot be used now: " in (get(client, run).error_message or "")
    assert 0 < rests[0] <= 5 < rests[1] <= 10
    client.schedules.remove("rests")


@pytest.mark.parametrize(("passed", "state"), [("23 hours", RunState.READING), ("24 hours", RunState.FAILED)])
def test_a_run_that_rested_for_a_day_fails_and_its_callback_hears_why(
    client: Client, tmp_path: Path, passed: str, state: RunState
) -> None:
    hook = f"https://receiver.example/{state}"
    client.webhooks.add(hook)
    source = write(tmp_path / "in.jsonl", pairs_of("stuck")[:3])
    # There is no such database: the server answers, and libpq tells it like one that does not.
    nowhere = make_url(str(client.settings.database_url)).set(database="nowhere")
    sink = {"url": nowhere.render_as_string(hide_password=False), "table": "scores"}
    name = f"stuck-{state}"
    run = schedule(client, name, str(source), sink, callback_url=hook)
    bench = Bench(client._database, client._publisher, client.settings)
    for _ in range(2):
        with client._database.transaction() as connection:
            connection.execute(text("UPDATE runs SET not_before = NULL"))
            connection.execute(text(f"UPDATE runs SET stuck_since = stuck_since - interval '{passed}'"))
            lease = runs.claim(connection, runner="test", lease=timedelta(minutes=1))
        assert lease is not None
        with pytest.raises(UnavailableError):
            carry_out(bench, Held(client._database, lease, timedelta(minutes=1)), Watcher())
    found = get(client, run)
    assert found.state is state
    assert 'database "nowhere" does not exist' in (found.error_message or "")
    told = rows(client, "SELECT event FROM deliveries WHERE run_id = :id", id=run.id)
    if state is RunState.FAILED:
        assert found.error_code == "sink_unavailable"
        assert [row.event for row in told] == ["run.failed"]
    else:
        assert told == []
        client.schedules.remove(name)
