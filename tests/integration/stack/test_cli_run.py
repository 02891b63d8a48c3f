"""The console script as a person runs it: on an embedded stack of its own, with a model that is a fake."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from producer import Client

SCRIPT = Path(sys.executable).with_name("batchmill")


class Terminal:
    """Runs commands in a folder, under a home."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        ours = {"BATCHMILL_HOME": str(home), "BATCHMILL_FLOWER_PORT": "0", "PYTHONUNBUFFERED": "1"}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("BATCHMILL_")} | ours

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command, env = [SCRIPT, *arguments], self.environment | environment
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=300)

    def json(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def lines(self, name: str) -> list[Any]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [SCRIPT, *arguments], cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True
        )

    def write(self, name: str, content: str) -> str:
        (self.folder / name).write_text(content)
        return name


@pytest.fixture(scope="module")
def running_home() -> Iterator[Path]:
    """A short path: sockets live below it."""
    home = Path(tempfile.mkdtemp(prefix="bm-"))
    batchmill = Terminal(home, home)
    try:
        started = batchmill("up", "--detach", "--json")
        assert started.returncode == 0, started.stderr
        assert "batchmill down` ends it" in started.stderr
        assert str(home) in json.loads(started.stdout)["database_url"]
        assert batchmill("models", "add", "m", "fake:?dimensions=4&fail=poison").stdout == "m@1\n"
        yield home
    finally:
        ended = batchmill("down")
        shutil.rmtree(home)
    assert ended.returncode == 0
    names = "compressor, runner, webhooks, beat, worker, valkey, postgres"
    assert ended.stderr == f"ended {names} under {home.resolve()}\n"


@pytest.fixture
def batchmill(running_home: Path, tmp_path: Path) -> Terminal:
    return Terminal(tmp_path, running_home)


def write_inputs(folder: Path) -> dict[str, str]:
    """The same two texts in every format; a .txt has no ids."""
    (folder / "in.jsonl").write_text('{"id": "a", "input": "one"}\n{"id": "b", "input": "two"}\n')
    (folder / "in.txt").write_text("one\ntwo\n")
    (folder / "in.csv").write_text("key,words\na,one\nb,two\n")
    table = pa.table({"key": ["a", "b"], "words": ["one", "two"]})
    pq.write_table(table, folder / "in.parquet")
    return {"in.jsonl": "out.jsonl", "in.txt": "out.jsonl", "in.csv": "out.parquet", "in.parquet": "out.csv"}


def test_a_file_of_any_format_goes_in_and_results_come_out(batchmill: Terminal) -> None:
    for source, target in write_inputs(batchmill.folder).items():
        columns = ["--id-column", "key", "--input-column", "words"] if source in ("in.csv", "in.parquet") else []
        done = batchmill("run", source, "--model", "m", "-o", target, *columns)

        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert ["items", "2"] in [line.split() for line in done.stderr.splitlines()]
        path = batchmill.folder / target
        ids = [0, 1] if source == "in.txt" else ["a", "b"]
        match path.suffix:
            case ".jsonl":
                lines = batchmill.lines(target)
                assert [line["id"] for line in lines] == ids
                assert all(len(line["output"]) == 4 for line in lines)
            case ".parquet":
                assert pq.read_table(path)["custom_id"].to_pylist() == ids
            case ".csv":
                assert pyarrow.csv.read_csv(path)["custom_id"].to_pylist() == ids


def test_what_was_computed_once_is_served_from_the_cache(batchmill: Terminal) -> None:
    source = batchmill.write("in.txt", "cache me\ncache me\nand me\n")

    first = batchmill.json("run", source, "-m", "m", "-o", "out.csv")
    assert (first["counts"]["items"], first["counts"]["distinct"], first["counts"]["computed"]) == (3, 2, 2)
    assert first["figures"]["tokens_per_second"] > 0
    again = batchmill.json("run", source, "-m", "m", "-o", "out.csv")
    assert (again["counts"]["cached"], again["counts"]["computed"]) == (2, 0)
    assert again["figures"]["tokens_per_second"] is None

    invalidated = batchmill("models", "invalidate", "m")
    assert (invalidated.returncode, invalidated.stdout) == (0, "")
    assert invalidated.stderr.startswith("m@1 begins epoch ")
    afresh = batchmill.json("run", source, "-m", "m", "-o", "out.csv")
    assert afresh["counts"]["computed"] == 2


def test_a_bad_line_ends_it_or_is_left_out(batchmill: Terminal) -> None:
    source = batchmill.write("in.jsonl", '"good"\n{"text": "wrong key"}\n"good too"\n')

    refused = batchmill("run", source, "-m", "m", "-o", "out.jsonl")
    assert (refused.returncode, refused.stdout) == (1, "")
    begun, error = refused.stderr.splitlines()
    assert begun.startswith("run ")
    assert error.startswith("error: in.jsonl, line 2: the object has no key 'input'")
    assert not (batchmill.folder / "out.jsonl").exists()

    report = batchmill("submit", source, "-m", "m", "--dry-run", "--json")
    assert report.returncode == 1
    found = json.loads(report.stdout)
    assert (found["items"], found["bad"], found["errors"][0]["where"]) == (2, 1, "in.jsonl, line 2")

    done = batchmill("run", source, "-m", "m", "-o", "out.jsonl", "--skip-bad")
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings[0].startswith("warning: in.jsonl, line 2: ")
    assert warnings[1] == "warning: 1 bad line was left out"
    assert [line["id"] for line in batchmill.lines("out.jsonl")] == [0, 1]


def test_inputs_that_fail_are_said_and_have_their_error(batchmill: Terminal) -> None:
    done = batchmill("run", batchmill.write("in.txt", "fine\npoison\n"), "-m", "m", "-o", "out.jsonl")

    assert done.returncode == 0, done.stderr
    assert "warning: 1 inputs failed" in done.stderr
    fine, poison = batchmill.lines("out.jsonl")
    assert (fine["error"], poison["output"]) == (None, None)
    assert "poison" in poison["error"]["message"]


def test_a_model_is_registered_on_the_way(batchmill: Terminal) -> None:
    source = batchmill.write("in.txt", "one\n")
    options = ["--source", "fake:?dimensions=2", "--quantization", "nf4"]

    done = batchmill("run", source, "-m", "on-the-way", "-o", "out.jsonl", *options)
    assert done.returncode == 0, done.stderr
    assert "model on-the-way@1 (nf4) is registered" in done.stderr


def test_a_job_is_followed_by_its_id(batchmill: Terminal) -> None:
    source = batchmill.write("in.txt", "followed\nby id\n")
    options = ["-m", "m", "--param", "precision=float16", "--metadata", "night=12", "--idempotency-key", "one-night"]

    submitted = batchmill("submit", source, *options)
    job_id = submitted.stdout.strip()
    assert batchmill("submit", source, *options, "--wait").stdout.strip() == job_id

    shown = batchmill.json("jobs", "show", job_id)
    assert (shown["id"], shown["state"], shown["metadata"]) == (job_id, "succeeded", {"night": 12})
    assert shown["params"]["precision"] == "float16"
    assert job_id in [job["id"] for job in batchmill.json("jobs", "list", "--state", "succeeded", "--limit", "5")]
    watched = batchmill("jobs", "watch", job_id)
    assert (watched.returncode, watched.stdout) == (0, "")

    lines = [json.loads(line) for line in batchmill("jobs", "results", job_id).stdout.splitlines()]
    assert [(line["id"], len(line["output"])) for line in lines] == [(0, 4), (1, 4)]


def test_a_reader_that_leaves_is_no_error(batchmill: Terminal) -> None:
    source = batchmill.write("in.txt", "".join(f"text {i}\n" for i in range(5_000)))
    job_id = batchmill("submit", source, "-m", "m", "--wait").stdout.strip()

    results = batchmill.start("jobs", "results", job_id)
    assert results.stdout is not None
    assert json.loads(results.stdout.readline())["id"] == 0
    results.stdout.close()
    assert results.stderr is not None
    assert results.stderr.read() == ""
    results.stderr.close()
    results.wait(30)


def test_a_run_is_gone_on_with_after_ctrl_c(
    batchmill: Terminal, running_home: Path, eventually: Callable[..., None]
) -> None:
    assert batchmill("models", "add", "slow", "fake:?load_delay=8").returncode == 0
    source = batchmill.write("in.txt", "slow\n")
    with Client(home=running_home) as client:
        waiting = batchmill.start("run", source, "-m", "slow", "-o", "out.csv")
        eventually(lambda: client.jobs(states=["running"]), 60)
        waiting.send_signal(signal.SIGINT)
    stdout, stderr = waiting.communicate(timeout=300)

    assert (waiting.returncode, stdout) == (130, "")
    farewell = stderr.splitlines()[-1]
    assert farewell.startswith("interrupted; go on with: batchmill run --resume ")
    assert not (batchmill.folder / "out.csv").exists()
    resumed = batchmill("run", "--resume", farewell.split()[-1])
    assert (resumed.returncode, resumed.stdout) == (0, ""), resumed.stderr
    assert len((batchmill.folder / "out.csv").read_text().splitlines()) == 2
    assert batchmill("run", source, "--resume", farewell.split()[-1]).returncode == 2


def test_rows_of_a_query_go_into_a_table(batchmill: Terminal) -> None:
    with sqlite3.connect(batchmill.folder / "shop.db") as shop:
        shop.execute("CREATE TABLE reviews (id integer PRIMARY KEY, title text, body text)")
        shop.executemany("INSERT INTO reviews VALUES (?, ?, ?)", [(1, "Good", "so so"), (2, "Bad", "so so")])
    shop.close()
    url = f"sqlite:///{batchmill.folder}/shop.db"
    query = ["--query", "SELECT * FROM reviews ORDER BY id", "--template", "{title}: {body}"]
    done = batchmill.json("run", url, "-m", "m", "-o", url, "--table", "vectors", *query)
    assert (done["run"]["state"], done["run"]["progress"]["rows_written"]) == ("succeeded", 2)
    with sqlite3.connect(batchmill.folder / "shop.db") as shop:
        rows = shop.execute("SELECT id, output FROM vectors ORDER BY id").fetchall()
    shop.close()
    assert [str(row[0]) for row in rows] == ["1", "2"]
    assert all(row[1] is not None for row in rows)


def test_jobs_are_paused_resumed_cancelled_and_retried(batchmill: Terminal) -> None:
    assert batchmill("models", "add", "away", "fake:?dimensions=4", "--pool", "away").returncode == 0
    source = batchmill.write("in.txt", "one\ntwo\n")
    first, second = (
        batchmill("submit", source, "-m", "away", "--expires-in", time).stdout.strip() for time in ("90m", "3d")
    )

    paused = batchmill("jobs", "pause", first, f"batchmill://jobs/{second}")
    assert (paused.returncode, paused.stdout) == (0, "")
    assert paused.stderr == "".join(f"job {i} is paused: batchmill jobs resume {i}\n" for i in (first, second))
    shown = dict(line.split(maxsplit=1) for line in batchmill("jobs", "show", first).stdout.splitlines())
    assert (shown["state"].strip(), shown["waiting"].strip(), "expires" in shown) == ("paused", "2", True)
    assert [job["state"] for job in batchmill.json("jobs", "resume", first, second)] == ["queued", "queued"]

    # One that cannot be cancelled keeps none of the others from it.
    ended = batchmill("jobs", "cancel", first, "nonsense", second)
    assert (ended.returncode, ended.stdout) == (1, "")
    lines = ended.stderr.splitlines()
    assert lines[0] == f"job {first} is cancelled: 0 of 2 inputs were done"
    assert lines[1].startswith("error: 'nonsense' is no job's id")
    assert lines[2] == f"job {second} is cancelled: 0 of 2 inputs were done"
    refused = batchmill("jobs", "resume", first)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert f"job {first} is cancelled for good" in refused.stderr

    retried = batchmill("jobs", "retry-failed", first)
    retry = retried.stdout.strip()
    assert retried.stderr == f"2 items of job {first} are job {retry}\n"
    [again] = batchmill.json("jobs", "retry-failed", first)
    assert (again["id"], again["retry_of"]) == (retry, first)
    watched = batchmill("jobs", "watch", first)
    assert watched.returncode == 1
    assert f"error: job {first} is cancelled, 2 of 2 inputs were not computed" in watched.stderr


def test_a_run_that_expires_says_how_to_read_what_was_done(batchmill: Terminal) -> None:
    assert batchmill("models", "add", "late", "fake:?dimensions=4", "--pool", "away").returncode == 0
    source = batchmill.write("in.txt", "one\n")

    late = batchmill("run", source, "-m", "late", "-o", "out.csv", "--expires-in", "1")
    assert late.returncode == 1
    job_id = late.stderr.split()[-4].strip("`") if late.stderr else ""
    assert f"`batchmill jobs results {job_id}` gives what was" in late.stderr
    assert not (batchmill.folder / "out.csv").exists()
    unheard = batchmill("submit", source, "-m", "late", "--callback-url", "https://receiver.example/hook")
    assert (unheard.returncode, unheard.stdout) == (1, "")
    assert "batchmill webhooks add" in unheard.stderr


def test_the_register_of_models(batchmill: Terminal) -> None:
    added = batchmill.json("models", "add", "kept", "fake:?dimensions=8", "--pool", "gpus")
    assert (added["reference"], added["pool"]) == ("kept@1", "gpus")
    assert added in batchmill.json("models", "list")
    assert ["model", "kept@1"] in [line.split() for line in batchmill("models", "show", "kept").stdout.splitlines()]
    removed = batchmill("models", "remove", "kept")
    assert (removed.returncode, removed.stderr) == (0, "removed kept@1\n")
    gone = batchmill("models", "show", "kept")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.startswith("error: model 'kept' is not registered")


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_top_is_a_live_screen_until_q_or_ctrl_c(key: bytes, batchmill: Terminal) -> None:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    env = batchmill.environment | {"TERM": "xterm"}
    command = ["setsid", "--ctty", SCRIPT, "top"]  # as a shell's child: what the terminal reads as Ctrl-C is a signal
    top = subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, pressed = b"", 0
    with suppress(OSError):  # the terminal's end, once nobody has it open
        while data := os.read(ours, 65_536):
            shown += data
            # As a person does, who presses again when nothing comes of it: every tenth time that it is drawn.
            if shown.count(b"WORKER") > 10 * pressed:
                os.write(ours, key)
                pressed += 1
    os.close(ours)

    assert top.wait(30) == 0
    assert shown.index(b"\x1b[?1049h") < shown.index(b"default") < shown.index(b"\x1b[?1049l")
    assert b"Traceback" not in shown


def test_a_model_is_measured_anew_when_it_is_asked_for(batchmill: Terminal) -> None:
    added = batchmill.json("models", "add", "measured", "fake:?dimensions=8")["reference"]
    first = batchmill("models", "measure", added)
    assert first.returncode == 0, first.stderr
    assert "float32, 1 × " in first.stdout
    assert f"workers of pool default are asked to measure {added}" in first.stderr
    [before] = batchmill.json("models", "show", added)["versions"][0]["measured"]
    assert batchmill("models", "measure", added).returncode == 0
    [after] = batchmill.json("models", "show", added)["versions"][0]["measured"]
    assert after["measured_at"] > before["measured_at"]
    assert {finding["check"] for finding in batchmill.json("doctor")} >= {"device", "speeds"}

    batchmill("models", "add", "elsewhere", "fake:", "--pool", "nobody")
    nobody = batchmill("models", "measure", "elsewhere", "--wait", "1")
    assert nobody.returncode == 1
    assert "nobody has measured it within 1 s" in nobody.stderr


def test_doctor_finds_nothing_here_and_says_what_is_wrong_elsewhere(
    batchmill: Terminal, running_home: Path, eventually: Callable[..., None]
) -> None:
    eventually((running_home / "run" / "worker.ready").exists)
    here = {finding["check"]: finding for finding in batchmill.json("doctor")}
    assert {finding["verdict"] for finding in here.values()} == {"ok"}
    assert {"database", "pgvector", "schema", "broker", "worker", "artifacts", "home", "device"} <= here.keys()

    nowhere = f"{running_home}/nowhere"
    elsewhere = batchmill(
        "doctor",
        BATCHMILL_DATABASE_URL=f"postgresql:///x?host={nowhere}",
        BATCHMILL_BROKER_URL=f"redis+socket://{nowhere}/v.sock",
        BATCHMILL_DEVICE="tpu",
        BATCHMILL_ARTIFACTS="unknown://bucket",
    )
    assert elsewhere.returncode == 1
    broken = {line.split()[0] for line in elsewhere.stdout.splitlines() if " broken " in line}
    assert broken == {"database", "broker", "device", "artifacts"}
    assert batchmill("doctor", BATCHMILL_SLOTS="1").stdout.count("broken") == 1


def test_servers_that_run_are_used_and_not_started_again(batchmill: Terminal) -> None:
    again = batchmill("up")
    assert again.returncode == 0
    assert "was running already" in again.stderr
    assert batchmill("migrate").stdout.strip()

    worker = batchmill.start("worker", "--slots", "2")
    assert worker.stderr is not None
    assert any("serves pool default" in line for line in worker.stderr)
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=300)
    assert worker.returncode == 0


def test_up_runs_in_the_foreground_until_ctrl_c(home: Path, tmp_path: Path) -> None:
    batchmill = Terminal(tmp_path, home)
    assert batchmill("worker").stderr.startswith("error: no stack runs under ")
    up = batchmill.start("up")
    assert up.stdout is not None
    assert up.stdout.readline().split()[0] == "database"
    assert batchmill.json("models", "list") == []
    up.send_signal(signal.SIGINT)
    _, stderr = up.communicate(timeout=300)

    assert up.returncode == 0, stderr
    assert "Ctrl-C ends everything" in stderr
    assert "ending postgres" in stderr
    nothing = batchmill("down")
    assert (nothing.returncode, nothing.stderr) == (0, f"nothing runs under {home.resolve()}\n")
