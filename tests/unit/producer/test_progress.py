import io
import re

import pytest
from rich.console import Console

from contracts.jobs import JobCounts
from producer import progress
from producer.notebook import NotebookBar
from producer.progress import LINE_SECONDS, Lines, TerminalBar, choose_progress
from tests.infos import info


def running(done: int, **changes: object) -> object:
    counts = JobCounts(items=3000, distinct=3000, computed=done)
    return info(**{"state": "running", "finished_at": None, "counts": counts, **changes})


def test_elsewhere_there_is_a_line_when_the_state_changed_or_the_job_advanced_for_a_while() -> None:
    stream, now = io.StringIO(), [0.0]
    lines = Lines(stream, lambda: now[0])

    for seconds, done in ((0, 0), (1, 100), (LINE_SECONDS, 500), (9.9, 600), (10, 1000), (30, 1000)):
        now[0] = seconds
        lines.show(running(done))
    lines.show(running(1000, state="paused"))
    lines.show(info())

    shown = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]
    name = info().id
    assert shown == [
        f"{name} running, 0 %, 0/3,000",
        f"{name} running, 16 %, 500/3,000, 500 computed, 100/s, 0:00:25 left",
        f"{name} running, 33 %, 1,000/3,000, 1,000 computed, 100/s, 0:00:20 left",
        f"{name} paused, 33 %, 1,000/3,000, 1,000 computed, 33.3/s, 0:01:00 left",
        f"{name} is paused: batchmill jobs resume {name}",
        f"{name} succeeded, 100 %, 1,000/1,000, 300 cached, 690 computed, 10 failed, 250/s, took 4.00 s",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_fits_the_terminal_and_leaves_room_for_what_ctrl_c_echoes(width: int) -> None:
    stream = io.StringIO()
    bar = TerminalBar(Console(file=stream, width=width, force_terminal=True, color_system=None))
    with bar:
        bar.show(running(1500))
        bar.show(info(id="00000000-0000-0000-0000-000000abcdef", model="other@2"))
        stream.seek(stream.truncate(0))

    text = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", stream.getvalue())
    for part in (
        "running",
        "50 %",
        "1,500/3,000",
        "…abcdef other@2",
        "succeeded",
        "100 %",
        "took 4.00 s",
        "300 cached",
    ):
        assert part in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width - len("^C")


def test_what_shows_a_job_suits_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose_progress(), Lines)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert isinstance(choose_progress(), TerminalBar)
    monkeypatch.setattr("producer.notebook.in_notebook", lambda: True)
    assert isinstance(choose_progress(), NotebookBar)
    assert progress.Silent().show(info()) is None
