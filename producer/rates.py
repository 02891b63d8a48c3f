"""What workers do in a second: the difference between two of their reports."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from storage.workers import SeenWorker

HISTORY = 240
"""Looks that are kept, for a picture of the last minutes."""
SILENT_SECONDS = 10.0
"""A worker that said nothing for so long is not counted as working."""


@dataclass(frozen=True)
class Rate:
    """Inputs and tokens a second."""

    inputs: float
    tokens: float


class Rates:
    """Remembers the last two reports of each worker."""

    def __init__(self) -> None:
        self._reports: dict[str, SeenWorker] = {}
        self._rates: dict[str, Rate] = {}
        self._history: deque[float] = deque(maxlen=HISTORY)

    def look(self, workers: Iterable[SeenWorker], at: datetime) -> None:
        """Take in what the workers say at a moment."""
        seen = {worker.name: worker for worker in workers}
        for name in self._reports.keys() - seen.keys():
            del self._reports[name]
            self._rates.pop(name, None)
        for name, worker in seen.items():
            before = self._reports.get(name)
            self._reports[name] = worker
            if (at - worker.seen_at).total_seconds() > SILENT_SECONDS:
                self._rates.pop(name, None)
            elif before is None or worker.started_at != before.started_at or worker.inputs < before.inputs:
                self._rates.pop(name, None)  # its counts began anew
            elif (seconds := (worker.seen_at - before.seen_at).total_seconds()) > 0:
                inputs, tokens = worker.inputs - before.inputs, worker.tokens - before.tokens
                self._rates[name] = Rate(inputs / seconds, tokens / seconds)
        if self._rates or self._history:
            self._history.append(self.total.inputs)

    def of(self, name: str) -> Rate | None:
        """The rate of a worker; None until it has reported twice."""
        return self._rates.get(name)

    @property
    def known(self) -> bool:
        """Whether any worker has reported twice."""
        return bool(self._rates)

    @property
    def total(self) -> Rate:
        """The rate of all workers."""
        return Rate(sum(r.inputs for r in self._rates.values()), sum(r.tokens for r in self._rates.values()))

    @property
    def history(self) -> Sequence[float]:
        """Inputs a second at each look, oldest first."""
        return tuple(self._history)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as bars of eight heights; the highest of them fills its cell, and nothing is a blank."""
    shown = values[-width:] if width > 0 else ()
    top = max(shown, default=0.0)
    bars = " ▁▂▃▄▅▆▇█"
    return "".join(bars[-(-round(8 * value / top * 1000) // 1000)] if value > 0 else " " for value in shown)
