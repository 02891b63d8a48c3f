"""A run does not write what it reads."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import InvalidRequest
from contracts.sinks import parse_sink
from contracts.sources import parse_source
from producer.runs.apart import check_apart

OPENAI = {"kind": "openai", "url": "/d/in.jsonl"}


def check(source: Any, sink: Any, report: str | None = None) -> None:
    check_apart(parse_source(source), parse_sink(sink), report)


@pytest.mark.parametrize(
    ("source", "sink"),
    [
        ("/d/in.jsonl", "/d/in.jsonl"),
        ("/d/in.jsonl", "file:///d/x/../in.jsonl"),
        ("/d", "/d/out.jsonl"),
        ("/d/", "/d/deeper/out.jsonl"),
        ("/d/*.jsonl", "/d/out.jsonl"),
        ("/d/**/*.jsonl", "/d/x/y/out.jsonl"),
        ("/d/*.jsonl", "/d/{date}.jsonl"),
        ("/d/*.parquet", "/d/"),
        ("/d", "/d/"),
        ("/d", "/d/scores/"),
        ({"url": "/d", "format": "parquet"}, "/d/scores/"),
        ("s3://bucket/day/", "s3://bucket/day/out.csv"),
        ("s3://bucket/*/in*.csv", "s3://bucket//day/in-out.csv"),
        (OPENAI, OPENAI),
        (OPENAI, {"kind": "openai", "url": "/d/out.jsonl", "errors_url": "/d/in.jsonl"}),
        ("/d/x.errors.jsonl", {"kind": "openai", "url": "/d/x.jsonl"}),
    ],
)
def test_a_sink_that_is_of_the_source_is_refused(source: Any, sink: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"(the sink|the error file) .* is of the source .*: write it elsewhere"):
        check(source, sink)


@pytest.mark.parametrize(
    ("source", "sink"),
    [
        ("/d/in.jsonl", "/d/out.jsonl"),
        ("/d/in.jsonl", "/d/"),
        ("/d/in*.jsonl", "/d/out.jsonl"),
        ("/d/*.jsonl", "/d/deeper/out.jsonl"),
        ("/d", "/data/out.jsonl"),
        ("/d", "/d/_scores/out.jsonl"),
        ("/d", "/d/.scores/"),
        ({"url": "/d", "format": "jsonl"}, "/d/out.csv"),
        ("s3://bucket/day/", "s3://bucket/days/out.csv"),
        ("s3://bucket/day/", "gs://bucket/day/out.csv"),
        ({"url": "postgresql://h/x", "query": "SELECT 1"}, {"url": "postgresql://h/x", "table": "t"}),
        ("/d", {"url": "sqlite:////d/x.db", "table": "t"}),
    ],
)
def test_one_beside_it_is_not(source: Any, sink: Any) -> None:
    check(source, sink, "/e/report-{date}.html")


def test_nor_may_the_report_lie_in_it() -> None:
    with pytest.raises(InvalidRequest, match=r"the report /d/\{date\}.html is of the source /d: "):
        check("/d", "/e/out.jsonl", "/d/{date}.html")


def test_links_lead_to_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for source in (tmp_path / "there", tmp_path / "there" / "*.csv", tmp_path / "there" / f"{date.today()}.csv"):
        with pytest.raises(InvalidRequest, match="is of the source"):
            check(source, tmp_path / "link" / "{date}.csv")
