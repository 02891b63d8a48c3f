"""Schedules: what they are to do, and the runs that a tick makes of them when they are due.

Whoever makes runs of a schedule locks its row first: so what is open, and what was made before, does not change under
him. Times are handed in, or the database's.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from contracts import cron as crons
from contracts.errors import DatabaseUnavailable, InvalidRequest, UnknownModel, UnknownSchedule, WrongState
from contracts.runs import CatchUp, Overlap, RunInfo, RunSpec, ScheduleInfo
from contracts.states import RunState
from storage import models, runs
from storage.database import Database

log = logging.getLogger(__name__)

GRACE = timedelta(minutes=5)
"""With `catch_up="none"`, how long after its time a run may still begin: ticks come now and then, and never at once."""
LOCK_SECONDS = 5.0
"""What one schedule may wait for a row that another has locked, as a seal may that of a job it is to cancel."""
MOST = 1_000
"""Runs that one tick makes of one schedule, those that are skipped among them; older ones leave no row."""
OVERLAP, MISSED = "overlap", "missed"
"""The `error_code` of a run that was skipped."""

_NOW = text("SELECT now()")
_INSERT = text("""
    INSERT INTO schedules (name, cron, timezone, spec, overlap, catch_up, next_due_at)
    VALUES (:name, :cron, :timezone, :spec, :overlap, :catch_up, :next_due_at)
    ON CONFLICT DO NOTHING RETURNING id
""").bindparams(bindparam("spec", type_=JSONB))
# A clock that was ahead left runs that are due in the future; what comes before them is due all the same.
_DUE = text("""
    SELECT id, name FROM schedules
    WHERE next_due_at <= :now
       OR next_due_at > :now AND EXISTS (SELECT FROM runs WHERE schedule_id = schedules.id AND due_at > :now)
    ORDER BY next_due_at, id
""")
_LOCK = text("SELECT * FROM schedules WHERE id = :id AND next_due_at IS NOT NULL FOR NO KEY UPDATE SKIP LOCKED")
_LOCK_NAMED = text("SELECT * FROM schedules WHERE name = :name FOR NO KEY UPDATE")
_SET_NEXT = text("UPDATE schedules SET next_due_at = :next WHERE id = :id AND next_due_at IS DISTINCT FROM :next")
_MADE = text("SELECT due_at FROM runs WHERE schedule_id = :id AND due_at = ANY(:due)")
_OPEN = text(f"SELECT id, due_at, state FROM runs WHERE schedule_id = :id AND {runs.OPEN} ORDER BY due_at")
_MAKE = text("""
    INSERT INTO runs (schedule_id, due_at, state, spec, error_code, error_message, finished_at)
    SELECT :id, due_at, state, :spec, code, message, CASE WHEN state = 'skipped' THEN now() END
    FROM unnest(CAST(:due AS timestamptz[]), CAST(:states AS text[]), CAST(:codes AS text[]),
                CAST(:messages AS text[])) AS made (due_at, state, code, message)
    ORDER BY due_at ON CONFLICT (schedule_id, due_at) DO NOTHING RETURNING id
""").bindparams(bindparam("spec", type_=JSONB))


def add(
    connection: Connection,
    *,
    name: str,
    cron: str,
    timezone: str,
    spec: RunSpec,
    overlap: Overlap,
    catch_up: CatchUp,
    now: datetime | None = None,
) -> ScheduleInfo:
    """Register a schedule, which is due from now on.

    Raises:
        InvalidRequest: There is one of that name.
    """
    values = {
        "name": name,
        "cron": cron,
        "timezone": timezone,
        "spec": spec.model_dump(mode="json"),
        "overlap": overlap,
        "catch_up": catch_up,
        "next_due_at": crons.next_due(cron, timezone, now or connection.execute(_NOW).scalar_one()),
    }
    if connection.execute(_INSERT, values).first() is None:
        raise InvalidRequest(
            f"schedule {name!r} exists already: `batchmill schedules remove {name}` makes room for another, or choose "
            "another name"
        )
    return get(connection, name)


def get(connection: Connection, name: str) -> ScheduleInfo:
    """A schedule with its newest run.

    Raises:
        UnknownSchedule: There is none of that name.
    """
    row = connection.execute(text("SELECT * FROM schedules WHERE name = :name"), {"name": name}).first()
    if row is None:
        raise _unknown(name)
    return _info(connection, row)


def list_all(connection: Connection) -> list[ScheduleInfo]:
    """Every schedule, by name."""
    rows = connection.execute(text("SELECT * FROM schedules ORDER BY name")).all()
    return [_info(connection, row) for row in rows]


def pause(connection: Connection, name: str) -> bool:
    """Make no more runs of it, what is open goes on; whether this call did it.

    Raises:
        UnknownSchedule: There is none of that name.
    """
    row = _lock(connection, name)
    statement = text(
        "UPDATE schedules SET paused_at = now(), next_due_at = NULL WHERE id = :id AND paused_at IS NULL RETURNING id"
    )
    return connection.execute(statement, {"id": row.id}).first() is not None


def resume(connection: Connection, name: str, now: datetime | None = None) -> bool:
    """Make runs of it again, from the next time on that it is due; whether this call did it.

    Raises:
        UnknownSchedule: There is none of that name.
    """
    row = _lock(connection, name)
    moment = now or connection.execute(_NOW).scalar_one()
    statement = text("""
        UPDATE schedules SET paused_at = NULL, next_due_at = :next WHERE id = :id AND paused_at IS NOT NULL RETURNING id
    """)
    values = {"id": row.id, "next": crons.next_due(row.cron, row.timezone, moment)}
    return connection.execute(statement, values).first() is not None


def remove(connection: Connection, name: str) -> None:
    """Remove a schedule with its runs, and what is yet to be announced of them; an open one is cancelled, with its job.

    Raises:
        UnknownSchedule: There is none of that name.
    """
    row = _lock(connection, name)
    _cancel_open(connection, row, f"schedule {name} was removed")
    connection.execute(text("DELETE FROM schedules WHERE id = :id"), {"id": row.id})


def run_now(connection: Connection, name: str, now: datetime | None = None) -> RunInfo:
    """A run that is due at once, paused or not; it obeys the schedule's overlap, and may be skipped for it.

    Raises:
        UnknownSchedule: There is none of that name.
    """
    row = _lock(connection, name)
    moment = now or connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    _make(connection, row, [moment], [])
    statement = text("SELECT id FROM runs WHERE schedule_id = :id AND due_at = :due_at")
    return runs.get(connection, connection.execute(statement, {"id": row.id, "due_at": moment}).scalar_one())


def make_due(database: Database, now: datetime | None = None) -> list[UUID]:
    """Make the runs that are due of every schedule, a schedule a transaction; which these are.

    Any number of callers make each run once: a schedule that another deals with at this moment is left to him, and a
    run is unique by its schedule and its time.

    One that cannot be dealt with now is logged, stays due, and holds up no other.

    Args:
        database: Where the schedules are.
        now: Which runs are due; the database's time when not given.

    Raises:
        DatabaseUnavailable: Postgres does not answer; what was not made is left to the next call.
    """
    with database.transaction() as connection:
        moment: datetime = now or connection.execute(_NOW).scalar_one()
        due = connection.execute(_DUE, {"now": moment}).all()
    made: list[UUID] = []
    for schedule in due:
        try:
            with database.transaction() as connection:
                connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_SECONDS * 1000:.0f}"))
                row = connection.execute(_LOCK, {"id": schedule.id}).first()
                fresh = [] if row is None else _make_due(connection, row, moment)
        except DatabaseUnavailable as error:
            log.warning("schedule %s: %s", schedule.name, error)
            with database.transaction() as connection:  # where all of Postgres is away, this ends the round
                connection.execute(_NOW)
        except Exception:
            log.exception("schedule %s: no run was made of it, for a reason that nobody thought of", schedule.name)
        else:
            made += fresh
    return made


def _make_due(connection: Connection, row: Row[Any], now: datetime) -> list[UUID]:
    try:
        due = crons.due_between(row.cron, row.timezone, row.next_due_at - timedelta(microseconds=1), now, MOST + 1)
        following = crons.next_due(row.cron, row.timezone, now)
    except InvalidRequest as error:  # this machine knows fewer zones than the one that added it
        log.warning("schedule %s: %s", row.name, error)
        return []
    if len(due) > MOST:
        log.warning("schedule %s: runs due before %s were missed, and are passed over", row.name, due[1].isoformat())
    due = _unmade(connection, row, due[-MOST:])
    wanted = _wanted(row, due, now)
    made = _make(connection, row, wanted, sorted(set(due) - set(wanted)))
    connection.execute(_SET_NEXT, {"id": row.id, "next": following})
    return made


def _unmade(connection: Connection, row: Row[Any], due: list[datetime]) -> list[datetime]:
    """Those of the times that have no run yet."""
    made = set(connection.execute(_MADE, {"id": row.id, "due": due}).scalars()) if due else set()
    return [time for time in due if time not in made]


def _wanted(row: Row[Any], due: Sequence[datetime], now: datetime) -> list[datetime]:
    """Those of the times that the schedule catches up with."""
    match row.catch_up:
        case "all":
            return list(due)
        case "latest":
            return list(due[-1:])
        case _:
            return [time for time in due if time >= now - GRACE]


def _make(connection: Connection, row: Row[Any], wanted: Sequence[datetime], missed: Sequence[datetime]) -> list[UUID]:
    """Runs for those times, as the schedule's overlap has it; the schedule's row is locked."""
    state, code, message = RunState.QUEUED, None, None
    if wanted:
        if row.overlap == "cancel":
            _cancel_open(connection, row, f"the run due {wanted[0].isoformat()} took its place")
        elif row.overlap == "skip" and (other := connection.execute(_OPEN, {"id": row.id}).first()) is not None:
            state, code = RunState.SKIPPED, OVERLAP
            message = f"run {other.id}, due {other.due_at.isoformat()}, was {other.state} still"
    late = f"it was due while nothing could begin it, and the schedule catches up with {row.catch_up}"
    rows = [(time, state, code, message) for time in wanted]
    rows += [(time, RunState.SKIPPED, MISSED, late) for time in missed]
    values = {
        "id": row.id,
        "spec": row.spec,
        "due": [time for time, *_ in rows],
        "states": [str(state) for _, state, *_ in rows],
        "codes": [code for *_, code, _ in rows],
        "messages": [message for *_, message in rows],
    }
    return list(connection.execute(_MAKE, values).scalars()) if rows else []


def _cancel_open(connection: Connection, row: Row[Any], reason: str) -> None:
    for other in connection.execute(_OPEN, {"id": row.id}).all():
        with suppress(WrongState):  # it ended by itself at this moment
            runs.cancel(connection, other.id, reason)


def _lock(connection: Connection, name: str) -> Row[Any]:
    row = connection.execute(_LOCK_NAMED, {"name": name}).first()
    if row is None:
        raise _unknown(name)
    return row


def _unknown(name: str) -> UnknownSchedule:
    return UnknownSchedule(f"no schedule {name!r}; `batchmill schedules list` shows those that exist")


def _info(connection: Connection, row: Row[Any]) -> ScheduleInfo:
    fields = {name: getattr(row, name) for name in ScheduleInfo.model_fields if name not in ("last", "problem")}
    newest = runs.history(connection, row.name, limit=1)
    info = ScheduleInfo.model_validate({**fields, "last": newest[0] if newest else None})
    try:
        models.get(connection, info.spec.model)
    except UnknownModel as error:
        return info.model_copy(update={"problem": str(error)})
    return info
