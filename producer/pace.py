"""How fast a job goes of late, how long it will still take, and where it stands, in words."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from producer.summary import COMPRESS, figures, rate_text, seconds_text

if TYPE_CHECKING:
    from contracts.jobs import JobInfo

WINDOW_SECONDS = 30.0
"""What "of late" means."""
LEAST_SECONDS = 2.0
"""Over less than this no rate is told: shards take about a second, and are counted when they close."""


class Pace:
    """Inputs a second over the last half minute, from what a job's row says at each look.

    The time before the first input is done counts for nothing: the job waits for a worker, or its model is loaded.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looks: deque[tuple[float, int]] = deque()

    def look(self, done: int) -> None:
        """Note how many inputs are done now."""
        now = self._clock()
        if self._looks and done == self._looks[0][1] and len(self._looks) == 1:
            self._looks.clear()
        self._looks.append((now, done))
        while len(self._looks) > 2 and self._looks[1][0] <= now - WINDOW_SECONDS:
            self._looks.popleft()

    @property
    def rate(self) -> float | None:
        """Inputs a second; None as long as it cannot be told."""
        if len(self._looks) < 2:
            return None
        (begin, before), (_, after) = self._looks[0], self._looks[-1]
        seconds = self._clock() - begin
        return (after - before) / seconds if seconds >= LEAST_SECONDS else None


@dataclass(frozen=True)
class Standing:
    """Where a job stands, each part as a person reads it."""

    share: float | None
    """Of its distinct inputs those that are done, 0 to 1; None where nobody knows how many there are."""
    done: str
    """`12,345/27,000`."""
    parts: str
    """What became of them: `300 cached, 12,045 computed`."""
    rate: str
    """`1,234/s`, of late; over all of it at the end; empty when it cannot be told."""
    clock: str
    """`0:12:34 left`, or `took 3.21 s`."""

    @property
    def percent(self) -> str:
        """The share, rounded down: only what is done is 100 %."""
        return "" if self.share is None else f"{int(100 * self.share)} %"


def standing(info: "JobInfo", rate: float | None) -> Standing:
    """Where a job stands that goes at this rate."""
    if info.operation == COMPRESS:
        return _of_a_recipe(info)
    counts = info.counts
    done = counts.distinct - counts.waiting
    parts = (("cached", counts.cached), ("computed", counts.computed), ("failed", counts.failed))
    if info.state.terminal:
        seconds = figures(info)["seconds"]
        rate = done / seconds if seconds else None
        clock = f"took {seconds_text(seconds)}"
    else:
        clock = f"{timedelta(seconds=round(counts.waiting / rate))} left" if rate else ""
    return Standing(
        share=done / counts.distinct if counts.distinct else 0.0,
        done=f"{done:,}/{counts.distinct:,}",
        parts=", ".join(f"{count:,} {name}" for name, count in parts if count),
        rate=f"{rate_text(rate)}/s" if rate else "",
        clock=clock,
    )


def _of_a_recipe(info: "JobInfo") -> Standing:
    """Where a compression stands: its items are its steps and the end, each of its own length."""
    counts, at = info.counts, info.progress
    steps, done = counts.items - 1, counts.distinct - counts.waiting
    if info.state.terminal or at is None:
        clock = f"took {seconds_text(figures(info)['seconds'])}" if info.state.terminal else ""
        share = done / counts.distinct if counts.distinct else 0.0
        return Standing(share, f"{min(done, steps)}/{steps} steps", "", "", clock)
    return Standing(
        share=(at.position - 1 + at.fraction) / counts.items,
        done=f"step {at.position}/{steps}" if at.position <= steps else "after the last step",
        parts=" ".join(part for part in (f"{at.title} {at.fraction:.0%}", at.message) if part),
        rate="",
        clock=f"{timedelta(seconds=round(at.seconds_left))} left of it" if at.seconds_left is not None else "",
    )


def trouble(info: "JobInfo") -> str:
    """Why a paused job does not go on, and what to do; empty of another."""
    if info.state != "paused":
        return ""
    if info.error_message:
        return f"job {info.id} was paused: {info.error_message}"
    return f"job {info.id} is paused: batchmill jobs resume {info.id}"
