import time
from dataclasses import dataclass, field

import pytest

from contracts.errors import DatabaseUnavailable
from worker.watchdog import MISSES, Watchdog

TICK = 5.0


@dataclass
class Worker:
    """What the watchdog sees of one."""

    idle: bool = True
    claimed_at: float = -1000.0
    work: bool = True
    asked: int = 0

    def starves(self) -> bool:
        self.asked += 1
        return self.idle and self.work


@dataclass
class Calls:
    ticks: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def watchdog(self, worker: Worker) -> Watchdog:
        return Watchdog(worker, TICK, lambda: self.ticks.append(time.monotonic()), self.reasons.append)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr("worker.watchdog.time.monotonic", lambda: clock[0])
    return clock


def test_an_idle_worker_ticks_for_itself_when_no_tick_came(now: list[float]) -> None:
    calls, worker = Calls(), Worker(work=False)
    watchdog = calls.watchdog(worker)
    for _ in range(10):
        now[0] += TICK
        watchdog.ticked()
        watchdog.look()
    assert calls.ticks == []
    for _ in range(9):
        now[0] += TICK
        watchdog.look()
    assert len(calls.ticks) == 3
    worker.idle = False
    now[0] += 10 * TICK
    watchdog.look()
    assert len(calls.ticks) == 3


def test_a_worker_that_tickets_do_not_reach_ends_itself(now: list[float]) -> None:
    calls, worker = Calls(), Worker()
    watchdog = calls.watchdog(worker)
    for _ in range(MISSES - 1):
        now[0] += TICK
        watchdog.look()
    worker.claimed_at = now[0]  # one came after all
    watchdog.look()
    for _ in range(MISSES - 1):
        now[0] += TICK
        watchdog.look()
    worker.work = False
    watchdog.look()
    assert calls.reasons == []
    worker.work = True
    for _ in range(MISSES):
        now[0] += TICK
        watchdog.look()
    [reason] = calls.reasons
    assert "broker" in reason


def test_a_database_that_is_away_is_no_reason_to_end(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    calls, worker = Calls(), Worker()

    def away() -> bool:
        raise DatabaseUnavailable("it does not answer")

    monkeypatch.setattr(worker, "starves", away)
    with pytest.raises(DatabaseUnavailable):
        calls.watchdog(worker).look()
    assert calls.reasons == []
