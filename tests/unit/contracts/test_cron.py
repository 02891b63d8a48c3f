"""When schedules are due, against the clock on the wall, minute by minute."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from contracts import cron
from contracts.cron import check, due_between, next_due
from contracts.errors import InvalidRequest

DAY = timedelta(days=1)
CHANGES = [
    ("Europe/Berlin", "2026-03-29", "2026-10-25"),
    ("America/New_York", "2026-03-08", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-10-04", "2026-04-05"),  # by half an hour
]
STILL = ["Asia/Kolkata", "UTC"]


def days_around(zone: str, day: str) -> tuple[datetime, datetime]:
    """Two days before a day's noon, and two behind it."""
    noon = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    return noon - 2 * DAY, noon + 2 * DAY


def due(line: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """Each time that follows the one before, as a schedule asks."""
    found = []
    while (time := next_due(line, zone, after)) is not None and time <= until:
        found.append(time)
        after = time
    return found


def on_the_wall(line: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """Each minute at which the clock shows what the line asks for."""
    asked, place = CronSim(line, datetime(2024, 1, 1)), ZoneInfo(zone)
    minutes = (after + timedelta(minutes=n) for n in range(1, (until - after) // timedelta(minutes=1) + 1))
    shown = ((minute, minute.astimezone(place)) for minute in minutes)
    return [
        minute
        for minute, clock in shown
        if clock.minute in asked.minutes and clock.hour in asked.hours and asked.match_day(clock.date())
    ]


@pytest.mark.parametrize(("zone", "spring", "autumn"), CHANGES)
def test_a_time_of_day_is_due_once_on_each_of_the_days_when_clocks_change(zone: str, spring: str, autumn: str) -> None:
    for day in (spring, autumn):
        for clock in ("30 2", "15 2", "0 2", "45 1", "30 1", "59 1", "0 3"):
            found = due(f"{clock} * * *", zone, *days_around(zone, day))
            days = [time.astimezone(ZoneInfo(zone)).date() for time in found]
            assert len(found) == len(set(days)) == 4, (clock, day)


@pytest.mark.parametrize(
    ("zone", "day", "line", "clock"),
    [
        ("Europe/Berlin", "2026-03-29", "30 2 * * *", "03:00+02:00"),
        ("Europe/Berlin", "2026-10-25", "30 2 * * *", "02:30+02:00"),
        ("America/New_York", "2026-03-08", "30 2 * * *", "03:00-04:00"),
        ("America/New_York", "2026-11-01", "30 1 * * *", "01:30-04:00"),
        ("Australia/Lord_Howe", "2026-10-04", "15 2 * * *", "02:30+11:00"),
        ("Australia/Lord_Howe", "2026-04-05", "45 1 * * *", "01:45+11:00"),
        ("Asia/Kolkata", "2026-03-29", "30 2 * * *", "02:30+05:30"),
        ("UTC", "2026-03-29", "30 2 * * *", "02:30+00:00"),
    ],
)
def test_what_the_clock_leaves_out_is_due_behind_the_gap_and_what_comes_twice_the_first_time(
    zone: str, day: str, line: str, clock: str
) -> None:
    midnight = datetime.fromisoformat(f"{day}T00:00").replace(tzinfo=ZoneInfo(zone))
    found = next_due(line, zone, midnight)
    assert found is not None
    assert found.tzinfo is UTC
    assert found == datetime.fromisoformat(f"{day}T{clock}")


@pytest.mark.parametrize(("zone", "spring", "autumn"), CHANGES)
def test_a_time_of_day_is_the_same_whenever_it_is_asked_for(zone: str, spring: str, autumn: str) -> None:
    """Also in the hour that the clock shows for the second time."""
    for day in (spring, autumn):
        after, until = days_around(zone, day)
        for line in ("30 2 * * *", "45 1 * * *"):
            every = due(line, zone, after, until)
            for minutes in range(0, 4 * 24 * 60, 13):
                start = after + timedelta(minutes=minutes)
                assert next_due(line, zone, start) == min(
                    (time for time in every if time > start), default=next_due(line, zone, until)
                )


@pytest.mark.parametrize(("zone", "day"), [(zone, day) for zone, *days in CHANGES for day in days])
@pytest.mark.parametrize("line", ["0 * * * *", "*/15 * * * *", "0 */3 * * *", "30 */2 * * *", "*/20 2 * * *"])
def test_a_distance_goes_by_the_clock_on_the_wall(zone: str, day: str, line: str) -> None:
    after, until = days_around(zone, day)
    expected = on_the_wall(line, zone, after, until)
    assert due(line, zone, after, until) == expected
    for start in (after + timedelta(minutes=1301), after + timedelta(minutes=2077)):
        assert due(line, zone, start, until) == [time for time in expected if time > start]


def test_hours_are_counted_as_they_pass() -> None:
    for day, hours in (("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)):
        midnight = datetime.fromisoformat(f"{day}T00:00").replace(tzinfo=ZoneInfo("Europe/Berlin"))
        following = midnight + DAY
        assert len(due("0 * * * *", "Europe/Berlin", midnight, following)) == hours


@pytest.mark.parametrize("zone", [*(zone for zone, *_ in CHANGES), *STILL])
@pytest.mark.parametrize("line", ["30 2 * * *", "*/15 * * * *", "0 9 * * MON-FRI", "0 0 29 2 *", "0 0 L * *"])
def test_the_newest_of_a_span_are_those_that_follow_each_other(zone: str, line: str) -> None:
    after, until = datetime(2026, 3, 1, 5, tzinfo=UTC), datetime(2026, 4, 9, 7, 13, tzinfo=UTC)
    every = due(line, zone, after, until)
    for most in (1, 2, 100, 10_000):
        assert due_between(line, zone, after, until, most) == every[-most:]
    assert due_between(line, zone, until, after, 10) == []


def test_the_newest_of_many_years_are_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(CronSim):
        steps = 0

        def __next__(self) -> datetime:
            Counted.steps += 1
            return super().__next__()

    monkeypatch.setattr(cron, "CronSim", Counted)
    start, end = datetime(2006, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    assert len(due_between("* * * * *", "Europe/Berlin", start, end, 1000)) == 1000
    assert Counted.steps < 10_000


def test_a_leap_day_is_awaited() -> None:
    assert next_due("0 0 29 2 *", "UTC", datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2028, 2, 29, tzinfo=UTC)
    times = due("0 0 29 2 *", "UTC", datetime(2095, 1, 1, tzinfo=UTC), datetime(2110, 1, 1, tzinfo=UTC))
    assert [time.year for time in times] == [2096, 2104, 2108]


@pytest.mark.parametrize(
    ("line", "zone", "said"),
    [
        ("0 0 30 2 *", "UTC", "never fires"),
        ("0 0 31 4,6 *", "UTC", "never fires"),
        ("61 * * * *", "UTC", "'61' is no minute"),
        ("0 24 * * *", "UTC", "'24' is no hour"),
        ("0 0 0 * *", "UTC", "'0' is no day of the month"),
        ("0 0 * 13 *", "UTC", "'13' is no month"),
        ("0 0 * * FUN", "UTC", "'FUN' is no day of the week"),
        ("* * * * * *", "UTC", "no seconds"),
        ("@daily", "UTC", "give five fields"),
        ("", "UTC", "give five fields"),
        (f"{'9' * 5000} * * * *", "UTC", "give five fields"),
        ("0 2 * * *", "Europe/Berln", "did you mean 'Europe/Berlin'"),
        ("0 2 * * *", "", "timezone '': unknown"),
        ("0 2 * * *", "../../etc/passwd", "unknown"),
        (None, "UTC", "give five fields"),
        ("0 2 * * *", None, "timezone None: unknown"),
    ],
)
def test_what_no_schedule_can_go_by_is_refused(line: str, zone: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        check(line, zone)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("line", ["30 2 * * *", "*/15 8-18 * * mon-fri", "0 0 L * *", "0 9 * * MON#1", "0 0 29 2 *"])
def test_what_cron_knows_is_taken(line: str) -> None:
    check(line, "Europe/Berlin")
