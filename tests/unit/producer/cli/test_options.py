import pytest
import typer

from producer.cli.options import parse_object, parse_pairs


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
