"""How a run that somebody waits for is shown: rows while they are read, its job, rows while they are written."""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO

from contracts.errors import InvalidInput
from contracts.runs import RunInfo, RunProgress
from producer.pace import Pace, Standing
from producer.progress import LINE_SECONDS, Bars, Row, Silent, choose_progress
from producer.runs.watcher import Watcher
from producer.summary import byte_size, rate_text

if TYPE_CHECKING:
    from rich.console import Console

READING, WRITING = "reading", "writing"


def choose_watcher(
    *,
    begun: Callable[[RunInfo], None] = lambda _: None,
    left_out: Callable[[InvalidInput], None] = lambda _: None,
    console: "Console | None" = None,
) -> "Shown":
    """What suits where this process runs: a terminal, or a log.

    Args:
        begun: Told of the run once it is there.
        left_out: Told of each row that is left out.
        console: Of the terminal.
    """
    if sys.stderr.isatty():
        return ShownOnTerminal(console, begun=begun, left_out=left_out)
    return ShownInLines(sys.stderr, begun=begun, left_out=left_out)


class Rows:
    """How far one stage is.

    Args:
        clock: Seconds, from any moment on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace = Pace(clock)
        self._clock = clock
        self._began = clock()
        self._progress = RunProgress()

    def look(self, progress: RunProgress) -> None:
        """Note how many rows there were."""
        self._progress = progress
        self._pace.look(progress.rows_read)

    def standing(self, *, ended: bool = False) -> Standing:
        """Where the stage stands, with its rate of late; of all of it at the end."""
        at = self._progress
        seconds = self._clock() - self._began
        rate = at.rows_read / seconds if ended and seconds else self._pace.rate
        share = None
        for done, of_all in ((at.rows_read, at.rows), (at.bytes_read, at.bytes)):
            if of_all and share is None:
                share = min(done / of_all, 1.0)
        share = 1.0 if ended else share
        of_rows = f"/{at.rows:,}" if at.rows is not None else ""
        of_bytes = f"/{byte_size(at.bytes)}" if at.bytes else ""
        parts = [f"{byte_size(at.bytes_read)}{of_bytes}" if at.bytes_read else "", f"{at.bad:,} bad" if at.bad else ""]
        left = seconds * (1 - share) / share if share and not ended else None
        return Standing(
            share=share,
            done=f"{at.rows_read:,}{of_rows} rows",
            parts=", ".join(filter(None, parts)),
            rate=f"{rate_text(rate)}/s" if rate else "",
            clock=f"took {seconds:.1f} s" if ended else f"{timedelta(seconds=round(left))} left" if left else "",
        )


class Shown(Watcher):
    """Shows one stage after the other; what the others have in common."""

    def __init__(
        self,
        begun: Callable[[RunInfo], None] = lambda _: None,
        left_out: Callable[[InvalidInput], None] = lambda _: None,
    ) -> None:
        self._told_of = begun
        self._left_out = left_out
        self._stage = ""
        self._sealing = False
        self._rows = Rows()

    def begins(self, run: RunInfo) -> None:
        """Tell of the run."""
        self._told_of(run)

    def leaves_out(self, error: InvalidInput) -> None:
        """Tell of the row."""
        self._left_out(error)

    def reads(self, progress: RunProgress) -> None:
        """Show rows that were read."""
        self._enter(READING)
        self._rows.look(progress)
        self._changed()

    def seals(self) -> None:
        """Show that the job is being made."""
        self._sealing = True

    def writes(self, rows: int, total: int) -> None:
        """Show rows that were written."""
        self._enter(WRITING)
        self._rows.look(RunProgress(rows_read=rows, rows=total))
        self._changed()
        if rows >= total:
            self._leave()

    def scores(self) -> Silent:
        """End the bar of reading, and let the job have one."""
        self._leave()
        return choose_progress()

    def ends(self) -> None:
        """End the bar that is shown, of a stage that was cut."""
        self._leave(whole=False)

    def _enter(self, stage: str) -> None:
        if self._stage != stage:
            self._leave()
            self._stage, self._rows = stage, Rows()
            self._begun()

    def _leave(self, *, whole: bool = True) -> None:
        if self._stage:
            self._over(whole)
            self._stage, self._sealing = "", False

    def _begun(self) -> None: ...

    def _changed(self) -> None: ...

    def _over(self, whole: bool) -> None: ...


class ShownInLines(Shown):
    """A line every few seconds while rows pass, and one at the end of each stage."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic, **told: Any) -> None:
        super().__init__(**told)
        self._stream = stream
        self._clock = clock
        self._last = 0.0

    def _begun(self) -> None:
        self._last = self._clock()

    def _changed(self) -> None:
        if self._clock() >= self._last + LINE_SECONDS:
            self._last = self._clock()
            self._print(self._rows.standing())

    def _over(self, whole: bool) -> None:
        if whole:
            self._print(self._rows.standing(ended=True))

    def _print(self, found: Standing) -> None:
        parts = (self._stage, found.percent, found.done, found.parts, found.rate, found.clock)
        self._stream.write(", ".join(filter(None, parts)) + "\n")
        self._stream.flush()


class ShownOnTerminal(Shown):
    """A bar on stderr for each stage."""

    def __init__(self, console: "Console | None" = None, **told: Any) -> None:
        super().__init__(**told)
        self._console = console
        self._bar: _RowBar | None = None

    def _begun(self) -> None:
        self._bar = _RowBar(self, self._console)
        self._bar.__enter__()

    def _over(self, whole: bool) -> None:
        if self._bar is not None:
            self._bar.ended = whole
            self._bar.__exit__()
            self._bar = None

    def row(self, *, ended: bool) -> Row:
        """The bar of this stage."""
        if self._sealing and not ended:
            return Row("sealing", "cyan", replace(self._rows.standing(), share=None, rate="", clock=""))
        return Row(self._stage, "green" if ended else "cyan", self._rows.standing(ended=ended))


class _RowBar(Bars):
    """The bar of one stage."""

    def __init__(self, shown: ShownOnTerminal, console: "Console | None") -> None:
        self._shown = shown
        self.ended = False
        super().__init__(console)

    def _rows(self) -> Iterable[Row]:
        yield self._shown.row(ended=self.ended)
