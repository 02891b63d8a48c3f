"""How a job that somebody waits for is shown: a live bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TextIO
from uuid import UUID

from contracts.jobs import JobInfo
from contracts.states import JobState
from producer.pace import Pace, Standing, standing, trouble
from producer.summary import COLOURS, subject

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

LINE_SECONDS = 5.0
"""At least this long between two lines on what is no terminal."""
_ONE_LINE = 110
"""Columns from which on a job takes one line."""


class Silent:
    """Shows nothing; what the others have in common."""

    def show(self, info: JobInfo) -> None:
        """Take in what a job's row says now."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last look standing."""


def choose_progress() -> Silent:
    """What suits where this process runs: a notebook, a terminal, or a log."""
    from producer.notebook import NotebookBar, in_notebook

    if in_notebook():
        return NotebookBar()
    return TerminalBar() if sys.stderr.isatty() else Lines(sys.stderr)


def name_of(info: JobInfo) -> str:
    """What tells a job from others in a list: the end of its id, which is random, and its model."""
    return f"…{str(info.id)[-6:]} {subject(info)}"


class Lines(Silent):
    """A line when a job changed its state, and every few seconds while it advances."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._paces: dict[UUID, Pace] = {}
        self._last: dict[UUID, tuple[float, JobState, str]] = {}

    def show(self, info: JobInfo) -> None:
        """Print where the job stands, if that is news."""
        pace = self._paces.setdefault(info.id, Pace(self._clock))
        pace.look(info.counts.distinct - info.counts.waiting)
        found = standing(info, pace.rate)
        stands = f"{found.percent} {found.done}"
        now = self._clock()
        if (last := self._last.get(info.id)) is not None:
            at, state, before = last
            if state is info.state and (stands == before or now < at + LINE_SECONDS):
                return
        self._last[info.id] = (now, info.state, stands)
        parts = (f"job {info.id} {info.state}", found.percent, found.done, found.parts, found.rate, found.clock)
        self._stream.write(", ".join(part for part in parts if part) + "\n")
        if reason := trouble(info):
            self._stream.write(f"{reason}\n")
        self._stream.flush()


@dataclass(frozen=True)
class Row:
    """One bar."""

    state: str
    colour: str
    found: Standing
    name: str = ""
    """What tells it from others that are shown with it."""


class Bars(Silent):
    """Bars on a terminal's stderr, drawn anew a few times a second."""

    def __init__(self, console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = console or Console(stderr=True, highlight=False, emoji=False)
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4)

    def _rows(self) -> Iterable[Row]:
        """What there is to show now."""
        return ()

    def _render(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        # Not to the last column: a terminal that echoes ^C there would begin a line, and the bar be drawn twice.
        width = self._console.width - len("^C") - 1
        wide = width >= _ONE_LINE
        lines: list[RenderableType] = []
        table = _bars(width, wide)
        for row in self._rows():
            # The colours of the terminal's own palette, as those of rich are made for dark ones.
            found, colour = row.found, row.colour
            bar = ProgressBar(
                1.0,
                found.share or 0.0,
                pulse=found.share is None,
                style="bright_black",
                complete_style=colour,
                finished_style=colour,
            )
            details = [
                Text(row.name, "dim"),
                *(Text(part) for part in (found.done, found.rate)),
                Text(found.clock, "bold"),
                Text(found.parts),  # last, as it is the one to cut where there is no room
            ]
            head = (Text(f"{row.state:<9}", f"bold {colour}"), bar, Text(f"{found.percent:>5}"))
            if wide:
                table.add_row(*head, *details)
            else:
                table.add_row(*head)
                rest = Text("  ").join([Text(), *(part for part in details if part)])
                rest.truncate(width, overflow="ellipsis")
                lines += [table, rest]
                table = _bars(width, wide)
        return table if wide else Group(*lines)

    def __enter__(self) -> Self:
        try:
            self._live.start()
        except BaseException:  # Ctrl-C: the cursor is hidden by then
            self._live.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


class TerminalBar(Bars):
    """A bar for each job on stderr: inputs done, what they were, rate and time left."""

    def __init__(self, console: "Console | None" = None) -> None:
        self._infos: dict[UUID, JobInfo] = {}
        self._paces: dict[UUID, Pace] = {}
        super().__init__(console)

    def show(self, info: JobInfo) -> None:
        """Bring the job's bar up to what its row says; above it, say once when it is paused, and why."""
        from rich.text import Text

        before = self._infos.get(info.id)
        if (reason := trouble(info)) and not (before and before.state is JobState.PAUSED):
            self._console.print(Text(reason, "yellow"), soft_wrap=True)
        self._infos[info.id] = info
        self._paces.setdefault(info.id, Pace()).look(info.counts.distinct - info.counts.waiting)

    def _rows(self) -> Iterable[Row]:
        several = len(self._infos) > 1
        for info in list(self._infos.values()):
            found = standing(info, self._paces[info.id].rate)
            yield Row(info.state, COLOURS.get(info.state, "default"), found, name_of(info) if several else "")


def _bars(width: int, wide: bool) -> "Table":
    """State, bar and share, and what else there is to say where it has room."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    table.width = width
    for place in range(8 if wide else 3):
        table.add_column(no_wrap=True, ratio=1 if place == 1 else None)
    return table
