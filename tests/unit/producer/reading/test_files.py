import csv
import gc
import json
import os
import tracemalloc
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.canonical import canonicalize
from contracts.errors import InvalidInput, InvalidRequest
from producer.reading import file_source as readers
from producer.reading.finding import SUFFIXES


@pytest.fixture
def file(tmp_path):
    def write(name: str, content: bytes | str):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def items(path, **columns):
    """Where, id and value of each line; none may be bad."""
    found = list(readers.read(path, **columns))
    name = os.path.basename(path)
    assert [line.error for line in found if line.error] == []
    return [(line.where.removeprefix(f"{name}, "), line.custom_id, line.value) for line in found]


def errors(path, **columns):
    """The errors, by line; each names its line."""
    bad = [line for line in readers.read(path, **columns) if line.error]
    assert all(line.error.where == line.where and line.value is None for line in bad)
    return {line.where.removeprefix(f"{path.name}, "): line.error.reason for line in bad}


def items_and_errors(path, **columns):
    return [str(line.error.reason) if line.error else line[1:3] for line in readers.read(path, **columns)]


def test_jsonl_takes_objects_and_bare_values(file):
    path = file(
        "a.jsonl",
        '{"id": "x", "input": "text"}\r\n'
        '{"input": {"a": [1, 2.0]}, "id": 7}\n'
        "\n  \n"
        '{"input": ["q", "d"], "id": null}\n'
        '"bare ü"\n[1]\n3\ntrue\n'
        '{"input": "", "id": "1"}',
    )
    assert items(path) == [
        ("line 1", "x", "text"),
        ("line 2", "7", {"a": [1, 2.0]}),
        ("line 5", None, ["q", "d"]),
        ("line 6", None, "bare ü"),
        ("line 7", None, [1]),
        ("line 8", None, 3),
        ("line 9", None, True),
        ("line 10", "1", ""),
    ]


def test_jsonl_under_other_keys_passes_over_the_rest(file):
    path = file("a.jsonl", '{"key": 1, "text": "a"}\n{"id": 1, "text": "b"}\n{"text": null}\n{"id": 2}\n')
    assert items_and_errors(path, id_column="key", input_column="text") == [
        ("1", "a"),
        (None, "b"),
        "the input is null: give a value, or leave the line out",
        "the object has no key 'text', only 'id'",
    ]
    assert list(errors(path)) == [f"line {number}" for number in range(1, 5)]
    assert errors(file("b.jsonl", '{"id": 1, "input": "a", "more": 2}')) == {
        "line 1": "the object has 'more' beside 'id' and 'input', which nothing would use: remove it, "
        "put it into 'input', or name the keys to take"
    }


def test_bad_lines_of_jsonl_are_named_and_the_rest_goes_on(file):
    bad = {
        b'{"input": "cut': "not JSON: ",
        b"{'input': 1}": "not JSON: ",
        b"NaN": "not JSON: ",
        b"null": "input is null",
        b'{"input": null}': "input is null",
        b'{"text": "a", "id": 1}': "no key 'input', only 'id', 'text'",
        b"{}": "no key 'input', only none",
        b'{"input": 1, "b": 2, "a": 3}': "has 'a', 'b' beside 'id' and 'input'",
        b'{"input": "a", "id": 1.5}': "id is of type float",
        b'{"input": "a", "id": true}': "id is of type bool",
        b'{"input": "a", "id": 18446744073709551616}': "id is of type float",
        b'{"input": "a", "id": ""}': "id '' is empty",
        b'{"input": "a", "id": "\\u0000"}': "holds a NUL",
        b'{"input": "a", "id": "' + b"x" * 513 + b'"}': "longer than 512",
        b'"\\ud800"': "not JSON: ",
        b'{"input": "\xff"}': "invalid UTF-8 at byte ",
        b"1" * 5_000: "not JSON: ",
        b"[" * 2_000 + b"]" * 2_000: "not JSON: ",
    }
    path = file("a.jsonl", b"".join(b'"good"\n' + line + b"\n" for line in bad) + b'"good"')
    found = errors(path)
    assert list(found) == [f"line {2 * i}" for i in range(1, len(bad) + 1)]
    for reason, expected in zip(found.values(), bad.values(), strict=True):
        assert expected in reason
    assert sum(line.value == "good" for line in readers.read(path)) == len(bad) + 1


@pytest.mark.parametrize("line", ["18446744073709551616", '{"input": [-9223372036854775809]}'])
def test_integers_beyond_64_bits_are_not_rounded(file, line):
    [(_, _, value)] = items(file("a.jsonl", line))
    with pytest.raises(InvalidInput, match="beyond 64 bits"):
        canonicalize(value)


def test_long_numbers_that_fit_come_as_they_are(file):
    path = file("a.jsonl", '{"input": {"n": 18446744073709551615, "f": 0.12345678901234567890}, "id": "a"}')
    assert items(path) == [("line 1", "a", {"n": 2**64 - 1, "f": 0.12345678901234568})]


def test_txt_takes_each_line_as_it_is(file):
    path = file("a.txt", "\ufeffone\r\n  two\t\n\nfo\u2028ur\x0b\n\nlast")
    expected = ["one", "  two\t", "", "fo\u2028ur\x0b", "", "last"]
    assert items(path) == [(f"line {i}", None, text) for i, text in enumerate(expected, 1)]
    assert [value for _, _, value in items(file("b.txt", "a\n"))] == ["a"]
    assert items(file("c.txt", "")) == []
    with pytest.raises(InvalidRequest, match="no columns"):
        readers.read(path, input_column="text")


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_invalid_utf8_is_named_by_its_byte(file, name):
    content = b"\xef\xbb\xbfinput\n" + "1\nü\nx".encode()
    content = content.replace(b"input", b'"input"') if name == "a.jsonl" else content
    path = file(name, content.replace("ü".encode(), b'"ab\xffcd"') + b"\n2\n")
    [(where, reason)] = [(w, r) for w, r in errors(path).items() if "UTF-8" in r]
    assert where == "line 3"
    assert f"byte {path.read_bytes().index(0xFF):,} of the file (0xff)" in reason


def test_csv_with_quotes_newlines_and_other_columns(file):
    path = file(
        "a.csv",
        '\ufeffstars,id,input\r\n5,a,"one, ""two""\r\nthree"\r\n\r\n4,,plain\r\n3,7,\r\n',
    )
    assert items(path) == [
        ("line 2", "a", 'one, "two"\r\nthree'),
        ("line 5", None, "plain"),
        ("line 6", "7", ""),
    ]
    assert [(i, v) for _, i, v in items(path, id_column="stars", input_column="id") if v] == [("5", "a"), ("3", "7")]
    assert items(str(path)) == items(path)
    assert items(file("b.csv", "input\nx"))[0] == ("line 2", None, "x")


def test_bad_rows_of_csv_are_named_by_the_line_they_begin_on(file):
    path = file("a.csv", 'id,input\n1,"a\nb"\n2\n3,a,b\n4,"x"y\n5,"ok\n\n"\n6,"never closed\n7,x\n')
    found = errors(path)
    assert list(found) == ["line 4", "line 5", "line 6", "line 10"]
    assert "1 fields, and the header has 2" in found["line 4"]
    assert "3 fields" in found["line 5"]
    assert "not CSV" in found["line 6"]
    assert "read to line 11" in found["line 10"]


def test_a_long_field_of_csv(file):
    limit = csv.field_size_limit(131_072)  # what a fresh process has
    path = file("a.csv", "input\n" + "x" * 200_000 + "\n")
    assert len(items(path)[0][2]) == 200_000
    assert csv.field_size_limit() >= limit


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_missing_column_names_those_that_exist(tmp_path, suffix):
    path = tmp_path / f"reviews.{suffix}"
    if suffix == "csv":
        path.write_text("key,text\n1,a\n")
    else:
        pq.write_table(pa.table({"key": [1], "text": ["a"]}), path)
    with pytest.raises(InvalidInput, match=r"reviews\.\w+: column 'input' does not exist; the file has 'key', 'text'"):
        readers.read(path)
    with pytest.raises(InvalidInput, match="column 'id' does not exist"):
        readers.read(path, id_column="id", input_column="text")
    assert [(i, v) for _, i, v in items(path, id_column="key", input_column="text")] == [("1", "a")]


def test_a_column_that_stands_twice(file):
    with pytest.raises(InvalidInput, match="'input' stands more than once"):
        readers.read(file("a.csv", "input,input\na,b\n"))


def test_an_empty_csv_has_no_columns(file):
    with pytest.raises(InvalidInput, match="'input' does not exist; the file has none"):
        readers.read(file("a.csv", ""))


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=10_000)
    return path


def test_parquet_of_many_types(tmp_path):
    path = parquet(
        tmp_path / "a.parquet",
        id=pa.array([1, None, 3], pa.int32()),
        input=pa.array([{"a": [1.5], "b": True}, {"a": [], "b": None}, None]),
        text=pa.array(["x", "y", "x"]).dictionary_encode(),
        other=pa.array([Decimal(1)] * 3),
    )
    found = list(readers.read(path))
    assert [line.custom_id for line in found] == ["1", None, None]
    assert [line.value for line in found] == [{"a": [1.5], "b": True}, {"a": [], "b": None}, None]
    assert str(found[2].error) == "a.parquet, row 3: the input is null: give a value, or leave the line out"
    assert items(path, input_column="text")[2] == ("row 3", "3", "x")
    with pytest.raises(InvalidInput, match=r"column 'other' is of type decimal128\(1, 0\): an input is text"):
        readers.read(path, input_column="other")
    with pytest.raises(InvalidInput, match=r"column 'other' is of type decimal.*ids are text or integers"):
        readers.read(path, id_column="other")


@pytest.mark.parametrize("bad", ["", "a\0b", "x" * 513])
def test_a_bad_id_in_parquet_is_one_bad_row(tmp_path, bad):
    path = parquet(tmp_path / "a.parquet", id=["1", bad, "3"], input=["a", "b", "c"])
    assert [line.custom_id for line in readers.read(path)] == ["1", None, "3"]
    assert list(errors(path)) == ["row 2"]


def test_invalid_text_in_parquet_is_one_bad_row(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"], pa.binary()).buffers())
    path = parquet(tmp_path / "a.parquet", input=broken)
    assert list(errors(path)) == ["row 2"]
    assert [line.value for line in readers.read(path)] == ["a", None, "c"]


def test_a_damaged_parquet_names_the_row_reached(tmp_path):
    path = parquet(tmp_path / "a.parquet", input=[os.urandom(50).hex() for _ in range(30_000)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(InvalidInput, match=r"^a\.parquet: not a whole parquet file"):
        readers.read(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(100_000) + whole[middle + 100_000 :])
    found = readers.read(path)
    before = [next(found) for _ in range(100)]
    with pytest.raises(InvalidInput, match=r"^a\.parquet, row \d+: not a whole parquet file") as caught:
        before.extend(found)
    assert caught.value.where == f"a.parquet, row {len(before) + 1}"


def test_files_that_cannot_be_read(tmp_path):
    for suffix in SUFFIXES:
        missing = tmp_path / f"missing{suffix}"
        with pytest.raises(InvalidInput, match=f"{missing}: the file cannot be read: No such file"):
            readers.read(missing)
        folder = tmp_path / f"folder{suffix}"
        folder.mkdir()
        with pytest.raises(InvalidInput, match=f"{folder}: the folder holds no file that could be read"):
            readers.read(folder)
    for name in ("a.json", "a"):
        with pytest.raises(InvalidRequest, match=r"known are \.jsonl, \.txt, \.csv, \.parquet"):
            readers.read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
def test_a_file_that_shrinks_while_it_is_read(file, name):
    path = file(name, "input\n" * 100_000 if name != "a.jsonl" else '"inp"\n' * 100_000)
    found = readers.read(path)
    for _ in range(10):
        next(found)
    os.truncate(path, 300_003)  # in the middle of line 50,001
    with pytest.raises(InvalidInput, match=r"600,000 bytes when it was opened and ends here after 300,003") as caught:
        assert all(line.error is None for line in found)
    assert caught.value.where == f"{name}, line 50001"


def test_a_line_too_long_is_passed_over_and_not_parsed(file):
    def too_long(path):
        return {line.where.partition(", ")[2]: str(line.error) for line in read(path) if line.error is not None}

    def read(path):
        return readers.read(path, max_input_bytes=1_000)

    for length in (1_000, 1_001, 1_002, 1_003, 2_000, 2_004, 2_500):
        for newline in ("\n", "\r\n"):
            path = file("a.txt", newline.join(["one", "x" * length, "three", "y" * 5_000]))
            found = too_long(path)
            assert list(found) == (["line 2", "line 4"] if length > 1_000 else ["line 4"])
            assert "5,000 bytes, and an input may take 1,000 (BATCHMILL_MAX_INPUT_BYTES)" in found["line 4"]
            assert [line.value for line in read(path)][::2] == ["one", "three"]
    # Neither is JSON or CSV: what is too long, its newline counted, is not looked at.
    assert "2,002 bytes" in too_long(file("a.jsonl", '"' + "x" * 2_000 + "\n1\n"))["line 1"]
    assert "2,002 bytes" in too_long(file("a.csv", 'input\n"' + "x" * 2_000 + "\n1\n"))["line 2"]
    assert [line.error for line in readers.read(file("b.txt", "x" * 2**20))] == [None]
    assert [line.error is None for line in readers.read(file("c.txt", "x" * (2**20 + 1)))] == [False]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    rows = 40_000
    texts = [f"{i:>400}" for i in range(rows)]
    if suffix == ".parquet":
        pq.write_table(pa.table({"input": texts}), path, row_group_size=rows, compression="none", use_dictionary=False)
    elif SUFFIXES[suffix] == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema({"input": pa.string()})) as writer:
            writer.write_table(pa.table({"input": texts}), max_chunksize=5_000)
    else:
        with open(path, "w") as stream:
            stream.write("input\n" if suffix == ".csv" else "")
            stream.writelines((json.dumps(text) if suffix == ".jsonl" else text) + "\n" for text in texts)
    del texts
    gc.collect()
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    count = 0
    for line in readers.read(path):
        count += line.error is None
        if count % 4_000 == 0:
            assert pa.total_allocated_bytes() - before < 8_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == rows
    assert peak < 8_000_000  # of 16,000,000


def open_descriptors(path) -> int:
    return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_reader_that_is_dropped_closes_its_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"input": ["a", "b"]}), path)
    elif SUFFIXES[suffix] == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema({"input": pa.string()})) as writer:
            writer.write_table(pa.table({"input": ["a", "b"]}))
    else:
        path.write_text("input\n1\n2\n" if suffix == ".csv" else "1\n2\n")
    found = readers.read(path)
    assert open_descriptors(path) == 1
    del found
    gc.collect()
    assert open_descriptors(path) == 0
