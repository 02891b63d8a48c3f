from datetime import UTC, datetime, timedelta

import pytest
import time_machine
import typer

from producer.cli.options import parse_moment, parse_object, parse_pairs, parse_percentages, parse_time


def test_values_are_json_where_they_read_as_such() -> None:
    pairs = ["precision=float16", "truncate=false", "top_k=3", "name=a=b", "empty=", 'quoted="3"']

    assert parse_pairs(pairs, "--param") == {
        "precision": "float16",
        "truncate": False,
        "top_k": 3,
        "name": "a=b",
        "empty": "",
        "quoted": "3",
    }


@pytest.mark.parametrize("pair", ["precision", "=3", ""])
def test_what_is_no_pair_is_wrong_usage(pair: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not KEY=VALUE"):
        parse_pairs([pair], "--param")


@pytest.mark.parametrize(("text", "reason"), [("{", "not JSON"), ("[1]", "is not a JSON object")])
def test_what_is_no_object_is_wrong_usage(text: str, reason: str) -> None:
    with pytest.raises(typer.BadParameter, match=reason):
        parse_object(text, "--params")


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("90", 90), ("90s", 90), ("1.5m", 90), ("12h", 43_200), ("3d", 259_200)]
)
def test_times_have_a_unit_or_are_seconds(text: str | None, seconds: float | None) -> None:
    assert parse_time(text, "--expires-in") == seconds


@pytest.mark.parametrize("text", ["", "h", "2x", "-3", "1h30m", "nan", "1e3"])
def test_what_is_no_time_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no time"):
        parse_time(text, "--expires-in")


def test_percentages() -> None:
    assert parse_percentages(None, "--progress-at") == []
    assert parse_percentages("25, 50,75", "--progress-at") == [25, 50, 75]
    with pytest.raises(typer.BadParameter, match="are no percentages"):
        parse_percentages("25,,50", "--progress-at")


@pytest.mark.parametrize(("text", "ago"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), (" 3d ", 259_200)])
def test_a_moment_may_be_how_long_ago_it_was(text: str, ago: int) -> None:
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)
    with time_machine.travel(now, tick=False):
        assert parse_moment(text, "--since") == now - timedelta(seconds=ago)


def test_a_moment_may_be_a_date_or_a_time() -> None:
    assert parse_moment(None, "--since") is None
    assert parse_moment("2026-11-20", "--since") == datetime(2026, 11, 20).astimezone()
    assert parse_moment("2026-11-20T18:30+02:00", "--since") == datetime(2026, 11, 20, 16, 30, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "2026", "yesterday", "20h ago", "2026-13-01", "99999999999d", "-3d"])
def test_what_is_no_moment_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no moment"):
        parse_moment(text, "--since")
