import io
import re

import pytest
from rich.console import Console

from contracts.runs import RunProgress
from producer.progress import LINE_SECONDS
from producer.runs.showing import Rows, ShownInLines, ShownOnTerminal


@pytest.mark.parametrize(
    ("progress", "stands"),
    [
        (RunProgress(rows_read=250, rows=1000), (0.25, "250/1,000 rows", "", "0:00:30 left")),
        (
            RunProgress(rows_read=250, bytes_read=500_000, bytes=1_000_000, bad=3),
            (0.5, "250 rows", "500 kB/1.0 MB, 3 bad", "0:00:10 left"),
        ),
        (RunProgress(rows_read=250), (None, "250 rows", "", "")),  # a query says nothing beforehand
        (RunProgress(rows_read=0, bytes=0), (None, "0 rows", "", "")),
    ],
)
def test_rows_stand_where_rows_or_else_bytes_say(progress: RunProgress, stands: tuple[object, ...]) -> None:
    now = [0.0]
    rows = Rows(lambda: now[0])
    rows.look(RunProgress())
    now[0] = 5.0
    rows.look(RunProgress(rows_read=1))
    now[0] = 10.0
    rows.look(progress)
    found = rows.standing()
    assert (found.share, found.done, found.parts, found.clock) == stands
    ended = rows.standing(ended=True)
    assert (ended.percent, ended.clock) == ("100 %", "took 10.0 s")


def test_elsewhere_there_is_a_line_now_and_then_and_one_at_the_end_of_a_stage() -> None:
    stream, now = io.StringIO(), [0.0]
    shown = ShownInLines(stream, lambda: now[0])
    for seconds in (0.0, 1.0, LINE_SECONDS, LINE_SECONDS + 1):
        now[0] = seconds
        shown.reads(RunProgress(rows_read=int(100 * seconds), rows=1000))
    shown.seals()
    shown.scores()
    shown.writes(500, 1000)
    shown.writes(1000, 1000)
    shown.ends()
    lines = stream.getvalue().splitlines()
    assert [line.split(", ")[:3] for line in lines] == [
        ["reading", "50 %", "500/1,000 rows"],
        ["reading", "100 %", "600/1,000 rows"],
        ["writing", "100 %", "1,000/1,000 rows"],
    ]


@pytest.mark.parametrize("width", [80, 130])
def test_a_terminal_has_a_bar_for_each_stage(width: int) -> None:
    stream = io.StringIO()
    shown = ShownOnTerminal(Console(file=stream, width=width, force_terminal=True, color_system=None))
    shown.reads(RunProgress(rows_read=10, bytes_read=1000, bytes=2000))
    shown.seals()
    shown.scores()
    shown.writes(10, 10)
    shown.ends()
    text = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", stream.getvalue())
    for word in ("reading", "100 %", "10 rows", "1.0 kB/2.0 kB", "writing", "10/10 rows"):
        assert word in text, text
    assert all(len(line) < width for line in text.splitlines())


def test_a_stage_that_was_cut_stays_where_it_was() -> None:
    stream = io.StringIO()
    shown = ShownOnTerminal(Console(file=stream, width=100, force_terminal=True, color_system=None))
    shown.reads(RunProgress(rows_read=250, rows=1000))
    shown.ends()
    assert "25 %" in stream.getvalue()
    assert "100 %" not in stream.getvalue()
