"""What a sink can that a path cannot: compression, URLs and days."""

import gzip
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from textwrap import dedent

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.errors import InvalidRequest, SinkUnavailable
from contracts.names import Task
from contracts.sinks import FileSink
from producer.writing import open_sink
from tests.results import Cut, Notes, StoredResults

DAY = date(2026, 3, 29)
RESULTS = StoredResults([[{"label": "ü", "score": 0.5}]] * 25 + [None], Task.CLASSIFY)
MODEL = RESULTS.target.model


def write(url: object, day: date | None = None) -> None:
    sink = open_sink(FileSink(url=str(url)), day=day)
    sink.check(MODEL, {})
    assert sink.write(RESULTS, None, Notes()) == 26


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_compressed_files_hold_what_the_plain_ones_do(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b.gz", "b.zst", "c.GZ"):
        write(tmp_path / f"x{name.partition('.')[0]}{suffix}{name[1:]}")
    plain = (tmp_path / f"xa{suffix}").read_bytes()
    assert gzip.decompress((tmp_path / f"xb{suffix}.gz").read_bytes()) == plain
    assert (tmp_path / f"xb{suffix}.gz").read_bytes() == (tmp_path / f"xc{suffix}.GZ").read_bytes()
    with pa.CompressedInputStream(pa.OSFile(str(tmp_path / f"xb{suffix}.zst")), "zstd") as stream:
        assert stream.read() == plain


def test_formats_that_there_are_not(tmp_path: Path) -> None:
    for name in ("a.parquet.gz", "a.gz", "a.jsonl.bz2", "jsonl"):
        with pytest.raises(InvalidRequest, match=rf"{name}: the suffix says how .*\.jsonl\.zst"):
            open_sink(FileSink(url=str(tmp_path / name))).check(MODEL, {})


def test_folders_of_the_day_are_made(tmp_path: Path) -> None:
    write(tmp_path / "{date}" / "of" / "{date}.csv", DAY)
    assert (tmp_path / "2026-03-29" / "of" / "2026-03-29.csv").exists()
    assert os.listdir(tmp_path) == ["2026-03-29"]
    with pytest.raises(InvalidRequest, match=r"there is no folder .*nowhere; make it first"):
        open_sink(FileSink(url=str(tmp_path / "nowhere" / "{date}.csv")), day=DAY).check(MODEL, {})
    with pytest.raises(InvalidRequest, match=r"\{date\} stands for the day of a run, and this has none"):
        open_sink(FileSink(url=str(tmp_path / "{date}.csv")))


def test_a_path_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("a.jsonl")
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    write(f"file://{tmp_path}/a.parquet")
    assert pq.read_metadata(tmp_path / "a.parquet").num_rows == 26


def test_a_file_elsewhere_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    folder = f"/{tmp_path.name}"
    results = StoredResults([[{"label": "x" * 100, "score": 0.5}]] * 120_000, Task.CLASSIFY, page=10_000)
    write(f"memory:/{folder}/a.csv.gz")
    before = fs.cat(f"{folder}/a.csv.gz")
    notes = Notes(1)
    with pytest.raises(Cut):
        open_sink(FileSink(url=f"memory:/{folder}/a.csv.gz")).write(results, None, notes)
    assert notes.kept == [({}, 100_000)]
    assert fs.cat(f"{folder}/a.csv.gz") == before
    assert fs.ls(folder, detail=False) == [f"{folder}/a.csv.gz"]
    fs.rm(folder, recursive=True)


@pytest.mark.parametrize("task", [Task.CLASSIFY, Task.GENERATE])
def test_what_a_killed_attempt_left_goes_with_the_next(tmp_path: Path, task: Task) -> None:
    """A child is killed while it writes; only its own run's next attempt clears up after it."""
    code = """
        import os, signal, sys
        from contracts.names import Task
        from contracts.sinks import BatchFileSink, FileSink
        from producer.writing import open_sink
        from tests.results import StoredResults
        sink, task, job = sys.argv[1], Task(sys.argv[2]), __import__("uuid").UUID(sys.argv[3])
        output = {"text": "x", "finish_reason": "stop"} if task is Task.GENERATE else [{"label": "x", "score": 0.5}]
        results = StoredResults([output, None] * 60_000, task, job_id=job, page=10_000)
        spec = BatchFileSink(url=sink) if task is Task.GENERATE else FileSink(url=sink)
        die = sys.argv[4] == "die"
        open_sink(spec).write(results, None, lambda *_: os.kill(os.getpid(), signal.SIGKILL) if die else None)
    """
    files = 2 if task is Task.GENERATE else 1
    for job, end, left in (("1", "die", files), ("2", "die", 2 * files), ("2", "die", 2 * files), ("2", "live", files)):
        job_id = f"0199f0e4-8c00-7000-8000-00000000000{job}"
        arguments = [sys.executable, "-c", dedent(code), str(tmp_path / "out.jsonl"), task, job_id, end]
        done = subprocess.run(arguments, cwd=Path(__file__).parents[4], check=False)
        assert done.returncode == (0 if end == "live" else -signal.SIGKILL)
        assert len(list(tmp_path.glob(".*.partial"))) == left
    assert len(list(tmp_path.glob("out*.jsonl"))) == files


def test_stores_that_do_not_answer_or_are_not_there(tmp_path: Path) -> None:
    url = "ftp://me:hush@127.0.0.1:9/a.csv"
    with pytest.raises(
        SinkUnavailable, match=r"ftp://me:\*\*\*@127.0.0.1:9/a.csv cannot be written: Connection refused"
    ):
        open_sink(FileSink(url=url)).check(MODEL, {})
    with pytest.raises(InvalidRequest, match=r"strange://host/a.csv: .*choose another place, or install the package"):
        open_sink(FileSink(url="strange://host/a.csv"))
