"""The path of a night without a model: Parquet to Parquet, the night after with 1 % changed, and how both grow."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import alone, console, median, print_table, spread, stack
from benchmarks.plots import lines
from producer import Client
from stack import embedded
from stack.programs import environment

ROWS = 1_000_000
ROUNDS = 3
GROWTH = (10_000, 100_000, 1_000_000, 10_000_000)
CHANGED = 100
"""One row of so many has another input in the second night."""
CHUNK = 50_000
SCHEMA = pa.schema([("id", pa.string()), ("input", pa.string())])


class Night(NamedTuple):
    """What one run of a table was like."""

    rows_per_second: float
    computed: int
    client_mb: float
    """At its largest, resident."""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bm-nights-") as name, stack() as client:
        folder = Path(name)
        client.models.add("fake", "fake:")
        _night(client, folder, "warm-up", GROWTH[0], changed=0)
        firsts, seconds, worker_mb = [], [], 0.0
        for number in range(ROUNDS):
            firsts.append(_night(client, folder, f"round {number}", ROWS, changed=0))
            seconds.append(_night(client, folder, f"round {number}", ROWS, changed=1))
            _expect(firsts[-1].computed == ROWS and seconds[-1].computed == ROWS // CHANGED, firsts[-1], seconds[-1])
            worker_mb = max(worker_mb, _worker_mb(client))
        print_table(
            f"nightly: {ROWS:,} rows of 200 bytes, results of 384 floats, Parquet to Parquet, {ROUNDS} rounds",
            ["", "rows/s: median (range)", "asked", "client MB", "worker MB", "asked"],
            [
                ["every row new", *_row(firsts, "35,000", worker_mb)],
                [f"the night after, one row in {CHANGED} changed", *_row(seconds, "60,000", worker_mb)],
            ],
        )


def growth(sizes: Sequence[int] = GROWTH) -> None:
    """Rows a second of tables of several sizes, each scored on top of what is stored of the ones before."""
    found: dict[str, dict[int, float]] = {"every row new": {}, "one in a hundred changed": {}}
    memory = {}
    with tempfile.TemporaryDirectory(prefix="bm-nights-") as name, stack() as client:
        client.models.add("fake", "fake:?dimensions=32")
        _night(client, Path(name), "warm-up", sizes[0], changed=0)
        for rows in sizes:
            for changed, rates in enumerate(found.values()):
                night = _night(client, Path(name), f"{rows} rows", rows, changed=changed)
                rates[rows], memory[rows] = night.rows_per_second, night.client_mb
                console.print(f"{rows:,} rows:", night)
    print_table(
        "growth: rows/s by the size of the table, results of 32 floats, everything before stays stored",
        ["rows", *found, "client MB"],
        [[f"{rows:,}", *(f"{rates[rows]:,.0f}" for rates in found.values()), f"{memory[rows]:.0f}"] for rows in sizes],
    )
    lines("growth", "Parquet to Parquet on two cores", "rows of the table", "rows/s", found)


def workers(rows: int = ROWS) -> None:
    """Rows a second with one worker and with two on this machine, in turns."""
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="bm-nights-") as name, stack() as client:
        client.models.add("fake", "fake:?dimensions=32")
        _night(client, Path(name), "warm-up", GROWTH[0], changed=0)
        for number in range(ROUNDS):
            for count, second in ((1, nullcontext()), (2, _second_worker(client))):
                with second:
                    night = _night(client, Path(name), f"{number}, {count} workers", rows, changed=0)
                found[count].append(night.rows_per_second)
                console.print(f"{count} workers:", night)
    print_table(
        f"workers: {rows:,} new rows, results of 32 floats, {ROUNDS} rounds",
        ["workers on two cores", "rows/s: median (range)"],
        [[str(count), spread(rates)] for count, rates in found.items()],
    )


@contextmanager
def _second_worker(client: Client) -> Iterator[None]:
    """One more on this machine, as if it were another's: only the servers are shared."""
    with tempfile.TemporaryDirectory(prefix="bm-worker-") as home:
        ready = Path(home) / "ready"
        own = {"BATCHMILL_HOME": home, "BATCHMILL_READY_FILE": str(ready), "BATCHMILL_METRICS_PORT": "0"}
        process = subprocess.Popen([sys.executable, "-m", "worker"], env={**environment(client.settings), **own})
        try:
            for _ in range(600):
                if ready.exists():
                    break
                time.sleep(0.1)
            else:
                raise TimeoutError("the second worker does not come up")
            yield
        finally:
            process.terminate()
            process.wait(60)


def _night(client: Client, folder: Path, tag: str, rows: int, *, changed: int) -> Night:
    source, sink = folder / "source.parquet", folder / "sink.parquet"
    with pq.ParquetWriter(source, SCHEMA) as writer:
        for batch in _batches(tag, rows, changed):
            writer.write_batch(batch)
    settings = client.settings
    said = json.loads(
        alone(
            "nightly_client",
            str(settings.database_url),
            str(settings.broker_url),
            str(settings.home),
            str(source),
            str(sink),
        )
    )
    written = pq.ParquetFile(sink).metadata.num_rows
    _expect(written == rows, written, rows)
    return Night(rows / said["seconds"], said["computed"], said["peak_mb"])


def _batches(tag: str, rows: int, changed: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, CHUNK):
        numbers = range(start, min(start + CHUNK, rows))
        ids = [f"row-{number:09d}" for number in numbers]
        # A changed row says another night.
        texts = [
            f"{tag} night {changed if number % CHANGED == 0 else 0} {number:09d} ".ljust(200, "x") for number in numbers
        ]
        yield pa.record_batch([pa.array(ids), pa.array(texts)], schema=SCHEMA)


def _worker_mb(client: Client) -> float:
    """The most that a process of the worker had resident since it started, in MB."""
    (pid,) = (child.pid for child in embedded.status(client.settings).children if child.name == "worker")
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return max(_peak_kb(process.pid) for process in processes) / 1024


def _peak_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def _row(nights: list[Night], asked: str, worker_mb: float) -> list[str]:
    rates = [night.rows_per_second for night in nights]
    return [
        f"{median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})",
        asked,
        f"{max(night.client_mb for night in nights):.0f}",
        f"{worker_mb:.0f}",
        "600",
    ]


def _expect(right: bool, *said: Any) -> None:
    if not right:
        raise AssertionError(said)


if __name__ == "__main__":
    main()
