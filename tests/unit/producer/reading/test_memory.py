"""However long a source is, reading it takes the memory of a few thousand rows."""

import csv
import gzip
import io
import json
import subprocess
import sys
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS = 300_000
TIMES = 3
"""As many rows has the Parquet file."""
SCRIPT = """
import sys
from contracts.sources import FileSource
from producer.reading.opening import open_source

def peak():  # of this program alone: what getrusage tells begins with the parent's
    [line] = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

for url in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = peak()
    with open_source(FileSource(url=url)) as reading:
        for entry in reading.entries():
            assert entry.error is None
        print(reading.rows_read, peak() - before)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    with ExitStack() as opened:
        plain, packed = (opened.enter_context(open(folder / name, "w")) for name in ("a.jsonl", "a.csv"))
        rows = csv.writer(packed)
        rows.writerow(["id", "input"])
        zipped = opened.enter_context(gzip.open(folder / "a.jsonl.gz", "wb", compresslevel=1))
        schema = pa.schema({"id": pa.int64(), "input": pa.string()})
        parquet = opened.enter_context(pq.ParquetWriter(folder / "a.parquet", schema))
        for start in range(0, ROWS, 100_000):
            ids = range(start, start + 100_000)
            texts = [f"{number:>200}" for number in ids]
            lines = io.StringIO()
            for number, text in zip(ids, texts, strict=True):
                lines.write(json.dumps({"id": number, "input": text}) + "\n")
            plain.write(lines.getvalue())
            zipped.write(lines.getvalue().encode())
            rows.writerows(zip(ids, texts, strict=True))
            for _ in range(TIMES):
                parquet.write_table(pa.table({"id": ids, "input": texts}, schema=schema), row_group_size=100_000)
    return folder


def test_memory_stays_flat(files):
    urls = sorted(str(path) for path in files.iterdir())
    assert len(urls) == 4
    done = subprocess.run([sys.executable, "-c", SCRIPT, *urls], capture_output=True, text=True, check=True)
    for url, line in zip(urls, done.stdout.splitlines(), strict=True):
        rows, grown = line.split()
        # Arrow keeps some tens of megabytes that it used, however long the file is: this one has 180.
        times, most = (TIMES, 90) if url.endswith(".parquet") else (1, 16)
        assert int(rows) == ROWS * times, url
        assert float(grown) < most, f"{url}: {grown} MB more for {rows} rows of 200 bytes"
