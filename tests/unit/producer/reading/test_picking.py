import datetime
import io
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.errors import InvalidInput, InvalidRequest
from contracts.sources import Columns, FileSource
from producer.reading.opening import open_source
from producer.reading.picking import picked_of

JSONL = '{"key": 1, "title": "A", "body": "b", "stars": 5}\n{"key": 2, "title": null, "body": "c", "stars": 4.5}\n'
CSV = "key,title,body,stars\n1,A,b,5\n2,,c,4.5\n"


@pytest.fixture(params=["jsonl", "csv", "parquet", "arrow"])
def reviews(request, tmp_path):
    path = tmp_path / f"reviews.{request.param}"
    table = pa.table({"key": [1, 2], "title": ["A", None], "body": ["b", "c"], "stars": [5, 4.5]})
    if request.param == "parquet":
        pq.write_table(table, path)
    elif request.param == "arrow":
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        path.write_bytes(sink.getvalue())
    else:
        path.write_text(JSONL if request.param == "jsonl" else CSV)
    return path


def read(path, **columns):
    with open_source(FileSource(url=str(path), columns=Columns(**columns))) as reading:
        return [(e.custom_id, e.value) if e.error is None else e.error.reason for e in reading.entries()]


def test_a_template_over_columns(reviews):
    assert read(reviews, id="key", template="{title}: {body} {{{body}}}") == [("1", "A: b {b}"), ("2", ": c {c}")]
    assert read(reviews, id="key", template={"query": "{title}?", "text": "{body}"}) == [
        ("1", {"query": "A?", "text": "b"}),
        ("2", {"query": "?", "text": "c"}),
    ]
    assert read(reviews, id="key", input="body") == [("1", "b"), ("2", "c")]
    stars = [row[1] for row in read(reviews, template="{stars}/5")]
    assert stars == (["5/5", "4.5/5"] if reviews.suffix in (".csv", ".jsonl") else ["5.0/5", "4.5/5"])


def test_a_row_without_a_value_for_its_template(reviews):
    if reviews.suffix == ".csv":  # which knows no null
        assert read(reviews, template="{title}") == [(None, "A"), (None, "")]
    else:
        assert read(reviews, template="{title}!")[1] == "the input is null: give a value, or leave the line out"


def test_a_column_of_a_template_that_is_missing(reviews):
    if reviews.suffix == ".jsonl":
        assert (
            read(reviews, template="{titel}: {body}")
            == ["the object has no key 'titel', only 'body', 'key', 'stars', 'title'"] * 2
        )
        return
    with pytest.raises(InvalidInput, match=r"column 'titel' does not exist; the file has 'body', 'key', 'stars', 'ti"):
        read(reviews, template="{titel}: {body}")


def test_a_template_wants_objects(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('"bare"\nnull\n')
    assert read(path, template="{a}") == [
        "no object, whose keys 'a' could fill the template",
        "the input is null: give a value, or leave the line out",
    ]
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InvalidRequest, match="has no columns"):
        read(tmp_path / "a.txt", template="{a}")


def test_one_column_alone_keeps_its_value(tmp_path):
    pq.write_table(
        pa.table({"q": ["what"], "documents": [["a", "b"]], "day": [datetime.date(2026, 11, 22)], "raw": [b"x"]}),
        path := tmp_path / "a.parquet",
    )
    assert read(path, template={"query": "{q}", "documents": "{documents}"}) == [
        (None, {"query": "what", "documents": ["a", "b"]})
    ]
    assert read(path, template="{day}: {documents}") == [(None, '2026-11-22: ["a","b"]')]
    assert read(path, template="{q} {raw}") == ["a template holds texts and not bytes: cast the column"]


def test_values_of_a_template():
    fill = picked_of(Columns(template="{a}|{b}")).fill
    assert fill is not None
    assert fill([Decimal("1.50"), True]) == "1.50|true"
    assert fill([{"x": [1]}, None]) == '{"x":[1]}|'
    assert fill([None, None]) is None


def test_the_id_as_the_input(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "one", "more": 1}\n{"id": "two"}\n')
    (tmp_path / "a.csv").write_text("id,more\none,1\ntwo,\n")
    for name in ("a.jsonl", "a.csv"):
        assert read(tmp_path / name, input="id") == [(None, "one"), (None, "two")]
        assert read(tmp_path / name, input="id", id="id") == [("one", "one"), ("two", "two")]
        assert read(tmp_path / name, template="{id}") == [("one", "one"), ("two", "two")]
