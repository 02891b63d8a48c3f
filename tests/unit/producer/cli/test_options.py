import pytest
import typer

from producer.cli.options import parse_object, parse_pairs, parse_percentages, parse_time


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
