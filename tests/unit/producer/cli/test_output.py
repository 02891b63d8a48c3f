import pytest

from contracts.errors import InvalidInput
from producer.cli.output import BAD_LINES_SHOWN, BadLines, emit_table, fail
from producer.summary import byte_size


def test_an_error_is_one_line_and_keeps_what_a_log_says_last(capsys: pytest.CaptureFixture[str]) -> None:
    fail("the supervisor ended (/a/log):\nstarting\n\nno space left on device [a] \n" + "x" * 300)

    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: the supervisor ended (/a/log): " + "x" * 300]


def test_bad_lines_are_shown_in_full_at_first_and_then_counted(capsys: pytest.CaptureFixture[str]) -> None:
    bad = BadLines()
    for number in range(BAD_LINES_SHOWN + 5):
        bad(InvalidInput("not JSON", f"a.jsonl, line {number}"))
    bad.close()

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == BAD_LINES_SHOWN + 2
    assert lines[-3:] == [
        f"warning: a.jsonl, line {BAD_LINES_SHOWN - 1}: not JSON",
        "warning: … and 5 more",
        f"warning: {BAD_LINES_SHOWN + 5} bad lines were left out",
    ]


def test_a_table_that_no_terminal_shows_has_a_row_on_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    emit_table(("ID", "COUNT"), [("a" * 200, "1"), ("[bold]", "20")], right=("COUNT",))

    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["ID", "COUNT"]
    assert first.split() == ["a" * 200, "1"]
    assert second.split() == ["[bold]", "20"]
    assert "\x1b" not in first + second


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (28_400_000, "28.4 MB"), (999_900_000, "1.0 GB")]
)
def test_bytes_for_a_person(size: int, shown: str) -> None:
    assert byte_size(size) == shown
