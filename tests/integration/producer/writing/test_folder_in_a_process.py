"""Folders written by processes of their own: one that is killed, and two whose memory is measured."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import os, resource, signal, sys
import numpy as np, orjson, pyarrow as pa
from contracts.sinks import FolderSink
from producer.writing import open_sink
from tests.results import StoredResults

class Generated(StoredResults):
    def __init__(self, rows, dies_at):
        super().__init__([np.zeros(384, np.float32)])
        self._rows, self._dies_at = rows, dies_at

    def batches(self, schema, start=0):
        for at in range(start, self._rows, 5000):
            if at == self._dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count = min(5000, self._rows - at)
            values = np.random.default_rng(at).random(count * 384, np.float32)
            texts, flags = pa.nulls(count, pa.string()), pa.array([False] * count)
            output = pa.FixedSizeListArray.from_arrays(pa.array(values), type=schema.field("output").type)
            columns = [pa.array(range(at, at + count)), texts, output, texts, texts, flags, flags]
            yield pa.record_batch(columns, schema=schema)

def note(written, rows):
    print(orjson.dumps([written, rows]).decode(), flush=True)

folder, rows, dies_at, resume = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), orjson.loads(sys.argv[4])
sink = open_sink(FolderSink(url=folder, rows_per_part=30_000))
sink.write(Generated(rows, dies_at), resume, note)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def run(folder: Path, rows: int, dies_at: int = -1, resume: str = "null") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", _SCRIPT, str(folder), str(rows), str(dies_at), resume]
    # The allocator gives memory back at once: what is measured is what is held.
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_killed_in_the_middle_of_a_part_it_goes_on_at_the_next(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", 80_000).returncode == 0
    killed = run(tmp_path / "cut", 80_000, dies_at=45_000)
    assert killed.returncode == -signal.SIGKILL
    (noted,) = killed.stdout.splitlines()
    leftovers = [name for name in os.listdir(tmp_path / "cut") if name.endswith(".partial")]
    assert len(leftovers) == 1
    resumed = run(tmp_path / "cut", 80_000, resume=noted[1 : noted.rindex(",")])
    assert resumed.returncode == 0, resumed.stderr
    assert len(resumed.stdout.splitlines()) == 2
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    small, large = (int(run(tmp_path / str(rows), rows).stderr) // 1024 for rows in (60_000, 300_000))
    assert large - small < 60, f"{small} MB for 60,000 rows, {large} MB for 300,000: 92 MB and 461 MB of floats"
