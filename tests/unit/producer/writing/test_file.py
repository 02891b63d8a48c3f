import csv
import errno
import json
import os
import resource
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.errors import DatabaseUnavailable, InvalidRequest, SinkUnavailable
from producer.results import schema_of
from producer.writing.file import check_path, write_results
from producer.writing.formats import SUFFIXES as ALL_SUFFIXES

SUFFIXES = ALL_SUFFIXES[:3]

JSON_TEXT = pa.field("output", pa.string(), metadata={"json": "1"})


def batch_of(schema: pa.Schema, outputs: list, start: int = 0) -> pa.RecordBatch:
    """A row an output; one without an output has failed. Every second row has an id."""
    count = len(outputs)
    failed = [output is None for output in outputs]
    return pa.record_batch(
        [
            pa.array(range(start, start + count), pa.int64()),
            pa.array([f"id,{i}" if i % 2 else None for i in range(count)]),
            pa.array(outputs, schema.field("output").type),
            pa.array(["too_long" if f else None for f in failed], pa.string()),
            pa.array(['said "no"\nand left' if f else None for f in failed], pa.string()),
            pa.array([i % 2 == 0 for i in range(count)]),
            pa.array([i == 1 for i in range(count)]),
        ],
        schema=schema,
    )


def vectors(kind: pa.DataType, dtype: type) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    schema = schema_of(pa.field("output", pa.list_(kind, 2)))
    first = [np.array([0.1, 2], dtype), None, np.array([3, 1e-3], dtype)]
    if dtype is np.uint8:
        first = [np.array([1, 2], dtype), None, np.array([3, 255], dtype)]
    return schema, [batch_of(schema, first), batch_of(schema, [None, first[0]], start=3)]


def read_jsonl(path) -> list:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        (pa.float32(), np.float32, ["[0.1,2.0]", "[3.0,0.001]"]),
        (pa.float16(), np.float16, ["[0.099975586,2.0]", "[3.0,0.0010004044]"]),
        (pa.uint8(), np.uint8, ["[1,2]", "[3,255]"]),
    ],
    ids=["float32", "float16", "bits"],
)
def test_vectors_in_every_format(tmp_path, kind, dtype, expected):
    schema, batches = vectors(kind, dtype)
    for suffix in SUFFIXES:
        assert write_results(iter(batches), schema, tmp_path / f"a{suffix}") == 5
    assert pq.read_table(tmp_path / "a.parquet").equals(pa.Table.from_batches(batches))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    error = '{"code":"too_long","message":"said \\"no\\"\\nand left"}'
    assert lines == [
        f'{{"id":0,"output":{expected[0]},"error":null,"cached":true,"truncated":false}}',
        f'{{"id":"id,1","output":null,"error":{error},"cached":false,"truncated":true}}',
        f'{{"id":2,"output":{expected[1]},"error":null,"cached":true,"truncated":false}}',
        f'{{"id":3,"output":null,"error":{error},"cached":true,"truncated":false}}',
        f'{{"id":"id,1","output":{expected[0]},"error":null,"cached":false,"truncated":true}}',
    ]
    with open(tmp_path / "a.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == schema.names
    assert [row["output"] for row in rows] == [expected[0], "", expected[1], "", expected[0]]
    assert [row["custom_id"] for row in rows] == ["", "id,1", "", "", "id,1"]
    assert rows[1]["error_message"] == 'said "no"\nand left'
    assert (rows[1]["cached"], rows[1]["truncated"]) == ("false", "true")


def test_a_slice_of_a_batch_is_what_is_written(tmp_path):
    schema, batches = vectors(pa.float32(), np.float32)
    write_results([batches[0].slice(1, 2)], schema, tmp_path / "a.jsonl")
    assert [line["output"] for line in read_jsonl(tmp_path / "a.jsonl")] == [None, [3.0, 0.001]]


def test_structured_output_is_json_in_every_format(tmp_path):
    schema = schema_of(JSON_TEXT)
    batches = [batch_of(schema, ['{"label": "ü", "score": 0.5}', None, "[1]"])]
    for suffix in SUFFIXES:
        write_results(batches, schema, tmp_path / f"a{suffix}")
    expected = [{"label": "ü", "score": 0.5}, None, [1]]
    assert [line["output"] for line in read_jsonl(tmp_path / "a.jsonl")] == expected
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as stream:
        texts = [row["output"] for row in csv.DictReader(stream)]
    assert [json.loads(text) if text else None for text in texts] == expected
    assert pq.read_table(tmp_path / "a.parquet").equals(pa.Table.from_batches(batches))
    assert pq.read_schema(tmp_path / "a.parquet").field("output").metadata[b"json"] == b"1"


def test_plain_text_is_no_json(tmp_path):
    schema = schema_of(pa.field("output", pa.string()))
    write_results([batch_of(schema, ["[1]", "say"])], schema, tmp_path / "a.jsonl")
    assert [line["output"] for line in read_jsonl(tmp_path / "a.jsonl")] == ["[1]", "say"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_jobs_without_a_single_vector(tmp_path, suffix):
    schema = schema_of(pa.field("output", pa.list_(pa.float32(), 0)))
    path = tmp_path / f"a{suffix}"
    assert write_results([], schema, path) == 0
    assert path.exists()
    assert write_results([batch_of(schema, [None, None])], schema, path) == 2
    assert b"too_long" in path.read_bytes()


def test_small_batches_share_row_groups(tmp_path):
    schema, batches = vectors(pa.float32(), np.float32)
    write_results(batches * 50, schema, tmp_path / "a.parquet")
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_midway_leaves_the_old_file_and_nothing_else(tmp_path, suffix):
    schema, batches = vectors(pa.float32(), np.float32)
    path = tmp_path / f"a{suffix}"
    path.write_text("old")

    def failing():
        yield from batches
        raise DatabaseUnavailable("gone")

    with pytest.raises(DatabaseUnavailable, match="gone"):
        write_results(failing(), schema, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]
    write_results(batches, schema, path)
    assert path.read_bytes() != b"old"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_takes_no_more(tmp_path, suffix):
    """A real refusal in the middle of a file, by the limit on file sizes."""
    schema = schema_of(pa.field("output", pa.list_(pa.float32(), 64)))
    rng = np.random.default_rng(1)
    batches = [batch_of(schema, list(rng.random((500, 64), np.float32)))] * 3
    path = tmp_path / f"a{suffix}"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(SinkUnavailable, match=rf"a\{suffix} cannot be written: File too large; free"):
            write_results(batches, schema, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_paths_that_cannot_be_written_are_refused_before_anything_is_read(tmp_path, monkeypatch):
    schema, _ = vectors(pa.float32(), np.float32)

    def never():
        pytest.fail("a batch was read")
        yield

    (tmp_path / "folder.csv").mkdir()
    cases = {
        tmp_path / "a.json": r"known are \.parquet, \.jsonl, \.csv",
        tmp_path / "a": r"known are \.parquet, \.jsonl, \.csv",
        tmp_path / "missing" / "a.csv": r"there is no folder .*missing; make it first",
        tmp_path / "folder.csv": "is a folder",
    }
    for path, message in cases.items():
        with pytest.raises(InvalidRequest, match=message):
            check_path(path)
        with pytest.raises(InvalidRequest, match=message):
            write_results(never(), schema, path)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InvalidRequest, match=rf"may not write to the folder {tmp_path}; choose another"):
        write_results(never(), schema, tmp_path / "a.csv")


def test_a_folder_that_turns_out_to_be_read_only(tmp_path, monkeypatch):
    schema, batches = vectors(pa.float32(), np.float32)

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(InvalidRequest, match=r"a\.jsonl cannot be written: Read-only file system"):
        write_results(batches, schema, tmp_path / "a.jsonl")
    assert os.listdir(tmp_path) == []


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path):
    schema, batches = vectors(pa.float32(), np.float32)
    old = os.umask(0o027)
    try:
        write_results(batches, schema, tmp_path / "a.csv")
    finally:
        os.umask(old)
    assert (tmp_path / "a.csv").stat().st_mode & 0o777 == 0o640
