import bz2
import gzip
import io
import lzma
import os
import sys
from functools import partial

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.errors import ConfigurationError, InvalidInput, InvalidRequest, UnavailableError
from contracts.sources import FileSource
from producer.reading import finding
from producer.reading.opening import open_source

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": partial(lzma.compress, preset=0), "zst": zstd.compress}


def arrow(file: bool = True) -> bytes:
    table, sink = pa.table({"id": [1, 2, 3], "input": ["one", "two", "three"]}), io.BytesIO()
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": [1, 2, 3], "input": ["one", "two", "three"]}), sink)
    return sink.getvalue()


CONTENTS = {
    "jsonl": b'{"id": 1, "input": "one"}\n{"id": 2, "input": "two"}\n{"id": 3, "input": "three"}\n',
    "csv": b"id,input\n1,one\n2,two\n3,three\n",
    "txt": b"one\ntwo\nthree\n",
    "parquet": parquet(),
    "arrow": arrow(),
    "feather": arrow(file=False),
}


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def read(url, **options):
    with open_source(FileSource(url=str(url), **options)) as reading:
        return list(reading.entries())


def values(url, **options):
    entries = read(url, **options)
    assert [entry.error for entry in entries if entry.error] == []
    return [entry.value for entry in entries]


@pytest.mark.parametrize("packer", ["", *PACKERS])
@pytest.mark.parametrize("suffix", CONTENTS)
def test_each_format_packed_or_not_here_or_elsewhere(tmp_path, memory, suffix, packer):
    content = PACKERS[packer](CONTENTS[suffix]) if packer else CONTENTS[suffix]
    name = f"rows.{suffix}" + (packer and f".{packer}")
    (tmp_path / name).write_bytes(content)
    memory.pipe(f"/day/{name}", content)
    for url in (tmp_path / name, f"file://{tmp_path}/{name}", f"memory://day/{name}"):
        with open_source(FileSource(url=str(url))) as reading:
            entries = list(reading.entries())
            assert [entry.value for entry in entries] == ["one", "two", "three"]
            assert [entry.custom_id for entry in entries] == ([None] * 3 if suffix == "txt" else ["1", "2", "3"])
            assert entries[2].where.startswith(f"{name}, ")
            assert (reading.rows_read, reading.bytes_read, reading.bytes) == (3, len(content), len(content))
            assert reading.rows == (3 if name.endswith("parquet") else None)
            reading.check_unchanged()


def test_a_packed_file_may_be_of_several_pieces(tmp_path):
    for suffix, pack in PACKERS.items():
        path = tmp_path / f"a.txt.{suffix}"
        path.write_bytes(pack(b"one\n") + pack(b"two\n"))
        assert values(path) == ["one", "two"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_damaged_packed_file_says_how_far_it_was_read(tmp_path, suffix):
    lines = b"".join(b"%d %s\n" % (number, os.urandom(40).hex().encode()) for number in range(30_000))
    packed = PACKERS[suffix](lines)
    path = tmp_path / f"a.txt.{suffix}"
    kind = finding.COMPRESSIONS[f".{suffix}"]
    middle = len(packed) // 2
    for content in (packed[:middle], packed[:middle] + os.urandom(50_000) + packed[middle:]):
        path.write_bytes(content)
        with open_source(FileSource(url=str(path))) as reading, pytest.raises(InvalidInput) as caught:
            for _ in reading.entries():
                pass
        assert caught.value.where == f"a.txt.{suffix}, line {reading.rows_read + 1}"
        assert f"not a whole {kind} file, read to byte {reading.bytes_read:,} of {len(content):,}" in str(caught.value)
        assert 0 < reading.bytes_read <= len(content)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"this is no such thing")
    with pytest.raises(InvalidInput, match=rf"^a\.txt\.{suffix}, line 1: not a whole {kind} file"):
        read(path)


@pytest.fixture(params=["here", "elsewhere"])
def folder(request, tmp_path, memory):
    """Where files are put, by a function; and its URL."""

    def put(name, content=b'"x"\n'):
        if request.param == "elsewhere":
            memory.pipe(f"/data/{name}", content)
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)

    return put, "memory://data" if request.param == "elsewhere" else str(tmp_path)


def test_folders_are_read_by_name_without_what_is_hidden(folder):
    put, url = folder
    for number, name in enumerate(["b.jsonl", "a.jsonl.gz", "day=2/c.jsonl", "day=10/c.jsonl"]):
        content = f'"{number}"\n'.encode()
        put(name, gzip.compress(content) if name.endswith(".gz") else content)
    for name in ("_manifest.json", ".crc", "_temporary/x.jsonl", ".git/y.jsonl", "day=2/_SUCCESS"):
        put(name)
    for ending in ("", "/"):
        entries = read(url + ending)
        assert [(entry.where, entry.value) for entry in entries] == [
            ("a.jsonl.gz, line 1", "1"),
            ("b.jsonl, line 1", "0"),
            ("day=10/c.jsonl, line 1", "3"),
            ("day=2/c.jsonl, line 1", "2"),
        ]


def test_patterns(folder):
    put, url = folder
    for name in ("b.jsonl", "a.jsonl", "day=2/c.jsonl", "_d.jsonl", ".e.jsonl", "f.csv"):
        put(name, f'"{name}"\n'.encode())
    assert values(f"{url}/*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert values(f"{url}/**/*.jsonl") == ["a.jsonl", "b.jsonl", "day=2/c.jsonl"]
    assert values(f"{url}/[bc].json?") == ["b.jsonl"]
    assert values(f"{url}/day=*/c.jsonl") == ["day=2/c.jsonl"]
    assert values(f"{url}/_*.jsonl") == ["_d.jsonl"]
    with pytest.raises(InvalidInput, match=r"/\*\.parquet: no file matches the pattern"):
        read(f"{url}/*.parquet")
    put("[1].jsonl", b'"itself"\n')
    put("1.jsonl", b'"another"\n')
    assert values(f"{url}/[1].jsonl") == ["itself"]


def test_a_folder_of_several_formats(folder):
    put, url = folder
    put("a.jsonl")
    put("b.csv", b"input\ny\n")
    with pytest.raises(InvalidRequest, match="files of several formats, csv, jsonl: name the one to read"):
        read(url)
    assert values(url, format="jsonl") == ["x"]
    assert values(url, format="csv") == ["y"]
    put("c.log")
    with pytest.raises(InvalidRequest, match=r"c\.log: the suffix says what a file holds; known are \.jsonl"):
        read(url)
    assert values(f"{url}/*.log", format="txt") == ['"x"']
    assert values(f"{url}/*", format="txt") == ['"x"', "input", "y", '"x"']


def test_what_is_not_there(tmp_path, memory):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="empty: the folder holds no file that could be read"):
        read(tmp_path / "empty")
    with pytest.raises(InvalidInput, match=r"memory://none/a\.csv: the file cannot be read: No such file"):
        read("memory://none/a.csv")
    with pytest.raises(InvalidInput, match=r"none/: the file cannot be read: No such file"):
        read(f"{tmp_path}/none/")
    with pytest.raises(InvalidRequest, match="Protocol not known: nowhere"):
        read("nowhere://bucket/a.csv")
    assert read_empty(tmp_path) == []


def read_empty(tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    return read(tmp_path / "empty.jsonl")


@pytest.mark.skipif("s3fs" in sys.modules, reason="s3fs is installed here")
def test_a_package_that_is_missing_is_named_and_no_password_told(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^s3://key:\*\*\*@bucket/a\.csv: .*s3fs.*: pip install s3fs$"):
        read("s3://key:secret@bucket/a.csv")
    (tmp_path / "a.csv.lz4").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"a\.csv\.lz4: what unpacks it is not installed: pip install lz4"):
        read(tmp_path / "a.csv.lz4")


def test_a_server_that_does_not_answer_can_be_asked_again():
    with pytest.raises(UnavailableError, match=r"^ftp://me:\*\*\*@127\.0\.0\.1:1/a\.csv cannot be read now: "):
        read("ftp://me:secret@127.0.0.1:1/a.csv")


def test_a_file_that_changes_while_it_is_read(folder):
    put, url = folder
    for name in ("a.jsonl", "b.jsonl"):
        put(name)

    def problem(change):
        with open_source(FileSource(url=url)) as reading:
            list(reading.entries())
            reading.check_unchanged()
            change()
            with pytest.raises(InvalidInput) as caught:
                reading.check_unchanged()
        return str(caught.value)

    assert "b.jsonl: the file was changed while the source was read" in problem(lambda: put("b.jsonl", b'"y"\n'))
    assert "c.jsonl appeared while the source was read" in problem(lambda: put("c.jsonl"))
    assert "c.csv appeared" in problem(lambda: put("c.csv"))

    url += "/*.jsonl"

    def remove():
        system, path = fsspec.core.url_to_fs(url.replace("*", "a"))
        system.rm(path)

    assert "a.jsonl: the file went away while the source was read" in problem(remove)


def test_a_file_put_in_place_of_another_with_its_time_is_a_change(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    with open_source(FileSource(url=str(path))) as reading:
        list(reading.entries())
        before = path.stat()
        (tmp_path / "b").write_text("two\n")
        os.utime(tmp_path / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
        (tmp_path / "b").rename(path)
        with pytest.raises(InvalidInput, match=r"a\.txt: the file was changed"):
            reading.check_unchanged()
