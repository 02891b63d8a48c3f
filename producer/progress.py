"""A live bar for a job that somebody waits for."""

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from contracts.jobs import JobInfo
from contracts.states import JobState


class Silent:
    """Shows nothing."""

    def show(self, info: JobInfo) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""


class _Rate(ProgressColumn):
    """Inputs a second, of late; over all of it at the end."""

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


class ProgressBar(Silent):
    """A bar on stderr: inputs done, what they were, rate and time left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.fields[state]:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            _Rate(),
            TextColumn("[dim]{task.fields[clock]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=None, state="", detail="", clock="")
        self._paused = False

    def show(self, info: JobInfo) -> None:
        """Bring the bar up to what the job says; above it, say once when the job is paused, and why."""
        paused = info.state is JobState.PAUSED
        if paused and not self._paused:
            self._progress.console.print(Text(_why_paused(info), "yellow"), soft_wrap=True)
        self._paused = paused
        counts = info.counts
        parts = [
            f"{count:,} {name}"
            for name, count in (("cached", counts.cached), ("computed", counts.computed), ("failed", counts.failed))
            if count
        ]
        self._progress.update(
            self._task,
            total=counts.distinct,
            completed=counts.distinct - counts.waiting,
            state=str(info.state),
            detail=", ".join(parts),
            clock="left" if counts.waiting else "took",
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _why_paused(info: JobInfo) -> str:
    if info.error_message:
        return f"job {info.id} was paused: {info.error_message}"
    return f"job {info.id} is paused: batchmill jobs resume {info.id}"
