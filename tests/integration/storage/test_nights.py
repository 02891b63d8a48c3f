"""Four hundred nights in four zones, on beats that tick together and are killed in the middle of it."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from zoneinfo import ZoneInfo

import pytest

from contracts.cron import next_due
from storage import schedules
from storage.database import Database
from tests.jobs import query
from tests.runs import add, get

NIGHTS = 400
BEATS = 3
START = datetime(2026, 9, 1, 12, tzinfo=UTC)
CLOCKS = {
    "Europe/Berlin": (2, 30),
    "America/New_York": (2, 30),
    "Australia/Lord_Howe": (2, 15),
    "Asia/Kolkata": (2, 30),
}
ANSWER_SECONDS = 20


def due_on(day: date, zone: str) -> datetime:
    """The first minute of a day at which the clock shows the time, or is past it."""
    moment = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    while True:
        clock = moment.astimezone(ZoneInfo(zone))
        if (clock.hour, clock.minute) >= CLOCKS[zone]:
            return moment
        moment += timedelta(minutes=1)


def beat(url: str, pipe: Connection) -> None:
    """Tick whenever told the time."""
    with Database(url) as database:
        while True:
            schedules.make_due(database, pipe.recv())
            pipe.send(True)


class Beat:
    """A process that ticks, and another when it is killed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.killed_at_work = 0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")  # with all that is imported: a kill costs no second
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=beat, args=(self._url, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, now: datetime) -> None:
        self._pipe.send(now)

    def kill(self) -> None:
        assert self._process.pid is not None
        self.killed_at_work += not self._pipe.poll(0)
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        self._pipe.close()
        self._start()

    def await_answer(self) -> None:
        assert self._pipe.poll(ANSWER_SECONDS)
        assert self._pipe.recv()

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


@pytest.fixture
def beats(database_url: str) -> Iterator[list[Beat]]:
    started = [Beat(database_url) for _ in range(BEATS)]
    yield started
    for one in started:
        one.end()


@pytest.mark.timeout(120)
def test_each_night_has_one_run_whoever_dies_at_the_tick(database: Database, beats: list[Beat]) -> None:
    chance = random.Random(17)
    expected = {}
    for zone, (hour, minute) in CLOCKS.items():
        name = zone.rpartition("/")[2]
        add(database, name, f"{minute} {hour} * * *", timezone=zone, overlap="queue", catch_up="all", now=START)
        first = START.astimezone(ZoneInfo(zone)).date() + timedelta(days=1)
        expected[name] = [due_on(first + timedelta(days=night), zone) for night in range(NIGHTS)]
    end = max(times[-1] for times in expected.values())
    assert all(next_due(f"{minute} {hour} * * *", zone, end) for zone, (hour, minute) in CLOCKS.items())

    now = START
    while now < end:
        # Most nights on time; now and then after an outage, or by a clock that went back.
        now = min(now + timedelta(hours=chance.choice([24, 24, 24, 24, 24, 1, 70, -5])), end)
        for one in beats:
            one.tell(now)
        dying = chance.choice(beats) if chance.random() < 0.15 else None
        if dying is not None:
            time.sleep(chance.random() * 0.02)  # anywhere in a tick, which takes about so long
            dying.kill()
        for one in beats:
            if one is not dying:
                one.await_answer()
    schedules.make_due(database, end)  # what the last of the dead had locked

    for name, times in expected.items():
        rows = query(
            database,
            "SELECT due_at, state FROM runs JOIN schedules ON schedules.id = schedule_id WHERE name = :name "
            "ORDER BY due_at",
            name=name,
        )
        made = [row.due_at for row in rows if row.due_at <= times[-1]]
        assert made == times
        assert {row.state for row in rows} == {"queued"}
        assert (following := get(database, name).next_due_at) is not None
        assert following > end
    assert sum(one.killed_at_work for one in beats) >= 10
