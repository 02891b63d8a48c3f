"""When a schedule is due: a cron line, read by cronsim, in a time zone. Pure.

As in Debian's cron, when clocks change: a time of day that is left out is made up for at the first minute after the
gap, and one that comes twice counts once, the first time; so a job at 02:30 is due on every day exactly once. A line
whose minute or hour begins with `*` names no time of day but a distance: it is due whenever the clock on the wall shows
what it asks for, so `0 * * * *` 23 times on a day of 23 hours and 25 times on one of 25.
"""

import difflib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

from contracts.errors import InvalidRequest

MAX_CRON = 200
"""Characters of a line."""
_FIELDS = ("minute", "hour", "day of the month", "month", "day of the week")


def check(cron: str, zone: str) -> None:
    """Refuse what no schedule can go by.

    Raises:
        InvalidRequest: It is no cron line, one that never fires, or no zone; the message names the field.
    """
    _zone(zone)
    parts = _parts(cron)
    for place, (name, part) in enumerate(zip(_FIELDS, parts, strict=True)):
        alone = ["*"] * len(parts)
        alone[place] = part
        try:
            CronSim(" ".join(alone), datetime(2024, 1, 1))
        except CronSimError:
            raise InvalidRequest(f"cron {cron!r:.80}: {part!r:.40} is no {name}") from None
    try:
        fires = next_due(cron, zone, datetime(2024, 1, 1, tzinfo=UTC)) is not None
    except InvalidRequest:  # each field is right, and they do not go together
        fires = False
    if not fires:
        raise InvalidRequest(f"cron {cron!r:.80}: it never fires, as there is no such day")


def next_due(cron: str, zone: str, after: datetime) -> datetime | None:
    """The first time after that moment, in UTC; None where there is none.

    Raises:
        InvalidRequest: It is no cron line, or the zone is not known on this machine.
    """
    return next(_times(cron, zone, after), None)


def due_between(cron: str, zone: str, after: datetime, until: datetime, most: int) -> list[datetime]:
    """The newest times after one moment and up to another, in UTC and in their order; so many at most.

    Raises:
        InvalidRequest: It is no cron line, or the zone is not known on this machine.
    """
    # Cron lines are read forwards alone: look back further and further, until there are enough.
    span = timedelta(days=1)
    while True:
        start = max(after, until - span) if until - after > span else after
        found = []
        for time in _times(cron, zone, start):
            if time > until:
                break
            found.append(time)
        if start <= after or len(found) >= most:
            return found[-most:]
        span *= 4


def _times(cron: str, zone: str, after: datetime) -> Iterator[datetime]:
    minute, hour, *rest = _parts(cron)
    place, start = _zone(zone), after.astimezone(UTC).replace(microsecond=0)
    times = _by_distance if minute.startswith("*") or hour.startswith("*") else _by_time_of_day
    try:
        yield from times(" ".join((minute, hour, *rest)), place, start)
    except CronSimError as error:
        raise InvalidRequest(f"cron {cron!r:.80}: {error}") from None


def _by_time_of_day(line: str, place: ZoneInfo, after: datetime) -> Iterator[datetime]:
    for time in CronSim(line, after.astimezone(place)):
        moment = time.astimezone(UTC)
        # It goes by the clock on the wall, which shows an hour of autumn twice.
        if moment > after:
            yield moment
            after = moment


def _by_distance(line: str, place: ZoneInfo, after: datetime) -> Iterator[datetime]:
    # From one change of the clocks to the next: across one that is no whole hour (Lord Howe), cronsim leaves times out.
    offset: timedelta | None = _offset(place, after)
    while offset is not None:
        here, offset = timezone(offset), None
        for time in CronSim(line, after.astimezone(here)):
            moment = time.astimezone(UTC)
            if (change := _change(place, here.utcoffset(None), after, moment)) is not None:
                after, offset = change - timedelta(seconds=1), _offset(place, change)
                break
            yield moment
            after = moment


def _offset(place: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(place).utcoffset() or timedelta(0)


def _change(place: ZoneInfo, offset: timedelta, low: datetime, until: datetime) -> datetime | None:
    """The first second after `low`, and up to a moment, that is not at this offset from UTC."""
    while low < until:
        high = min(low + timedelta(days=1), until)
        if _offset(place, high) != offset:
            while high - low > timedelta(seconds=1):
                middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
                low, high = (middle, high) if _offset(place, middle) == offset else (low, middle)
            return high
        low = high
    return None


def _parts(cron: str) -> list[str]:
    parts = cron.split() if isinstance(cron, str) and len(cron) <= MAX_CRON else []
    if len(parts) == 6:
        raise InvalidRequest(f"cron {cron!r:.80}: there are no seconds; give the five fields {', '.join(_FIELDS)}")
    if len(parts) != len(_FIELDS):
        raise InvalidRequest(f"cron {cron!r:.80}: give five fields ({', '.join(_FIELDS)}), as in '30 2 * * *'")
    return parts


def _zone(zone: str) -> ZoneInfo:
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        near = difflib.get_close_matches(str(zone), available_timezones(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "give a name as 'Europe/Berlin' or 'UTC'"
        raise InvalidRequest(f"timezone {zone!r}: unknown; {hint}") from None
