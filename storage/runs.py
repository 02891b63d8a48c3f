"""Runs: one named function for each transition, each a guarded UPDATE; a lease fences what is read or written.

A transaction that touches a run and its job locks the job first.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn
from uuid import UUID, uuid4

from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from contracts.errors import JobNotFound, LeaseLost, RunNotFound, UnknownSchedule, WrongState
from contracts.events import Event
from contracts.runs import Changes, Drift, RunInfo, RunProgress, RunSpec
from contracts.states import TERMINAL_JOB_STATES, JobState, RunState
from contracts.urls import shown
from storage import control, events, jobs

MOST_DEATHS = 5
"""A run that so many processes died of, one after the other, without getting on, fails."""
LOST = f"{MOST_DEATHS + 1} processes that carried it out died, one after the other"
MAX_MESSAGE = 2_000
"""Characters of an error's message that are kept."""

OPEN = "runs.state IN ('queued', 'reading', 'scoring', 'writing')"
HELD = "runs.state IN ('reading', 'writing')"
_ENDED_JOB = f"jobs.state IN ({', '.join(repr(str(state)) for state in sorted(TERMINAL_JOB_STATES))})"

_SELECT = """
    SELECT runs.*, schedules.name AS schedule, now() - runs.stuck_since AS stuck_for,
           runs.lease_expires_at < now() AS over
    FROM runs LEFT JOIN schedules ON schedules.id = runs.schedule_id
"""
_OPEN_RUN = text("""
    INSERT INTO runs (state, spec, token, runner, lease_expires_at, attempt, started_at)
    VALUES ('reading', :spec, :token, :runner, clock_timestamp() + :lease, 1, now()) RETURNING id
""").bindparams(bindparam("spec", type_=JSONB))

# Of a schedule one run goes at a time, in the order in which they are due.
_READY = f"""
    {OPEN} AND (runs.not_before IS NULL OR runs.not_before <= now())
    AND CASE runs.state
        WHEN 'queued' THEN NOT EXISTS (
            SELECT FROM runs AS other
            WHERE other.schedule_id = runs.schedule_id AND other.id <> runs.id
              AND {OPEN.replace("runs.", "other.")} AND (other.due_at < runs.due_at OR other.state <> 'queued'))
        WHEN 'scoring' THEN runs.job_id IS NULL OR {_ENDED_JOB}
        ELSE runs.lease_expires_at IS NULL OR runs.lease_expires_at < now() AND runs.deaths < :most_deaths
    END
"""
# Who takes what he let expire himself did not die: he was cut off from Postgres.
_TAKE = """
    UPDATE runs SET
        state = CASE runs.state WHEN 'queued' THEN 'reading' WHEN 'scoring' THEN 'writing' ELSE runs.state END,
        token = :token, runner = :runner, lease_expires_at = clock_timestamp() + :lease, not_before = NULL,
        attempt = runs.attempt + 1, started_at = coalesce(runs.started_at, now()), error_message = NULL,
        deaths = runs.deaths + (runs.lease_expires_at IS NOT NULL AND runs.runner IS DISTINCT FROM :runner)::int
    FROM ready WHERE runs.id = ready.id RETURNING runs.id
"""
_CLAIM = text(f"""
    WITH ready AS MATERIALIZED (
        SELECT runs.id FROM runs LEFT JOIN jobs ON jobs.id = runs.job_id
        WHERE runs.schedule_id IS NOT NULL AND {_READY}
        ORDER BY runs.due_at, runs.id LIMIT 1 FOR NO KEY UPDATE OF runs SKIP LOCKED
    ) {_TAKE}
""")
_CLAIM_ONE = text(f"""
    WITH ready AS MATERIALIZED (
        SELECT runs.id FROM runs LEFT JOIN jobs ON jobs.id = runs.job_id
        WHERE runs.id = :id AND {_READY} FOR NO KEY UPDATE OF runs
    ) {_TAKE}
""")
_CANCEL = text(f"""
    UPDATE runs SET state = 'cancelled', token = NULL, lease_expires_at = NULL, finished_at = now(),
                    error_message = :reason
    WHERE id = :id AND {OPEN} RETURNING job_id
""")


@dataclass(frozen=True)
class RunLease:
    """A run that is the caller's to read or to write, for as long as it renews."""

    run: RunInfo
    token: UUID
    attempt: int
    """How often it was taken, by anyone; 1 for the first time."""
    written: dict[str, Any] | None = None
    """How far the sink is, as `note_written` left it."""
    stuck_for: timedelta = timedelta(0)
    """Since it first rested for want of a server, if it did not get on meanwhile."""


def open_run(connection: Connection, spec: RunSpec, *, runner: str, lease: timedelta) -> RunLease:
    """A new run of the caller's own, in state reading and held.

    Args:
        connection: In a transaction.
        spec: What it is to do.
        runner: Who holds it: `host:pid:`, and what no other process has had.
        lease: For how long, unless he renews.
    """
    token = uuid4()
    run_id = connection.execute(
        _OPEN_RUN, {"spec": spec.model_dump(mode="json"), "token": token, "runner": runner, "lease": lease}
    ).scalar_one()
    return _lease(connection, run_id, token)


def claim(connection: Connection, *, runner: str, lease: timedelta) -> RunLease | None:
    """Take the run of any schedule that has been due the longest of those that can go on; None where none can.

    queued -> reading, once the runs before it have ended; scoring -> writing, once its job has; reading and writing
    stay what they are, once their lease is over.
    """
    token = uuid4()
    values = {"token": token, "runner": runner, "lease": lease, "most_deaths": MOST_DEATHS}
    run_id = connection.execute(_CLAIM, values).scalar_one_or_none()
    return None if run_id is None else _lease(connection, run_id, token)


def claim_one(connection: Connection, run_id: UUID, *, runner: str, lease: timedelta) -> RunLease:
    """The same with one run of a caller's own.

    Raises:
        RunNotFound: There is none of that id.
        WrongState: It is of a schedule, has ended, is held by another, or waits for its job.
    """
    run = get(connection, run_id)
    if run.schedule is not None:
        raise WrongState(f"run {run_id} is of schedule {run.schedule}: runners carry it out")
    token = uuid4()
    values = {"id": run_id, "token": token, "runner": runner, "lease": lease, "most_deaths": MOST_DEATHS}
    if connection.execute(_CLAIM_ONE, values).first() is not None:
        return _lease(connection, run_id, token)
    row = _row(connection, run_id)
    run = info(row)
    if run.state.terminal:
        raise WrongState(f"run {run_id} is {run.state}: there is nothing left of it to do")
    if run.state is RunState.SCORING:
        raise WrongState(f"run {run_id} waits for its job {run.job_id}")
    if row.deaths >= MOST_DEATHS and row.over:
        raise WrongState(f"run {run_id} cannot be gone on with: {LOST}; begin a new one")
    raise WrongState(f"run {run_id} is {run.state}, carried out by another process: wait until its lease is over")


def renew(connection: Connection, token: UUID, lease: timedelta) -> bool:
    """Heartbeat: extend the lease; whether it still holds its run."""
    statement = text(f"UPDATE runs SET lease_expires_at = clock_timestamp() + :lease WHERE token = :token AND {HELD}")
    return connection.execute(statement, {"token": token, "lease": lease}).rowcount > 0


def release(connection: Connection, token: UUID, rest: timedelta | None = None, reason: str | None = None) -> None:
    """Give a run back as it stands.

    Args:
        connection: In a transaction.
        token: Of the lease.
        rest: Not claimable for so long, with the attempt counted; otherwise at once, and as if never taken.
        reason: Why it does not go on; the run says so until it is taken again.

    Raises:
        LeaseLost: The token is not valid any more; nothing was changed.
    """
    _fenced(
        connection,
        "token = NULL, lease_expires_at = NULL, not_before = now() + CAST(:rest AS interval), error_message = :reason,"
        " attempt = CASE WHEN CAST(:rest AS interval) IS NULL THEN attempt - 1 ELSE attempt END,"
        " stuck_since = coalesce(stuck_since, CASE WHEN CAST(:rest AS interval) IS NOT NULL THEN now() END)",
        token,
        rest=rest,
        reason=reason and _storable(reason),
    )


def bind_job(connection: Connection, token: UUID, job_id: UUID) -> None:
    """Note the job that the run is read into; in the transaction that opens it.

    Raises:
        LeaseLost: The token is not valid any more; nothing was changed.
    """
    _fenced(connection, "job_id = :job_id", token, RunState.READING, job_id=job_id)


def note_progress(connection: Connection, token: UUID, progress: RunProgress) -> None:
    """Note how far reading or writing is; in reading, with a chunk that was stored.

    Raises:
        LeaseLost: The token is not valid any more; nothing was changed.
    """
    # A file that is written goes from its start again after a cut: only what is read stays.
    change = "progress = :progress, " + _gets_on("state = 'reading'")
    _fenced(connection, change, token, progress=progress.model_dump(mode="json"))


def note_written(connection: Connection, token: UUID, written: dict[str, Any], progress: RunProgress) -> None:
    """Note how far the sink is, as it puts it itself; it is what a resumed run goes on from.

    Raises:
        LeaseLost: The token is not valid any more; nothing was changed.
    """
    _fenced(
        connection,
        "written = :written, progress = :progress, "
        + _gets_on("written IS DISTINCT FROM :written AND :written <> '{}'"),
        token,
        RunState.WRITING,
        written=written,
        progress=progress.model_dump(mode="json"),
    )


def scoring(connection: Connection, token: UUID) -> None:
    """Reading -> scoring: the job stands, nobody holds the run; in the transaction that seals the job, after it.

    Raises:
        LeaseLost: The token is not valid any more; nothing was changed.
    """
    change = f"state = 'scoring', token = NULL, lease_expires_at = NULL, {_gets_on('true')}"
    _fenced(connection, change, token, RunState.READING)


def succeed(
    connection: Connection,
    token: UUID,
    changes: Changes | None,
    drift: Drift | None,
    report: str | None,
    problem: str | None = None,
) -> None:
    """Writing -> succeeded; the callback hears `run.completed`, and `schedule.drift` where results moved too far.

    Args:
        connection: In a transaction.
        token: Of the lease.
        changes: Since the run before.
        drift: Of its results.
        report: Where it is.
        problem: Why there is none, where one was asked for.

    Raises:
        LeaseLost: The token is not valid any more; nothing was changed.
    """
    run_id = _fenced(
        connection,
        "state = 'succeeded', token = NULL, lease_expires_at = NULL, finished_at = now(), written = NULL,"
        " changes = :changes, drift = :drift, report = :report, error_message = :problem",
        token,
        RunState.WRITING,
        changes=changes and changes.model_dump(mode="json"),
        drift=drift and drift.model_dump(mode="json"),
        report=report,
        problem=problem and _storable(problem),
    )
    run = get(connection, run_id)
    events.announce_run(connection, run, Event.RUN_COMPLETED)
    if drift is not None and drift.over:
        events.announce_run(connection, run, Event.SCHEDULE_DRIFT)


def fail(connection: Connection, token: UUID, code: str, message: str) -> None:
    """Reading, writing -> failed; the callback hears `run.failed`.

    Raises:
        LeaseLost: The token is not valid any more; nothing was changed.
    """
    run_id = _fenced(
        connection,
        "state = 'failed', token = NULL, lease_expires_at = NULL, finished_at = now(), written = NULL,"
        " error_code = :code, error_message = :message",
        token,
        code=code,
        message=_storable(message),
    )
    events.announce_run(connection, get(connection, run_id), Event.RUN_FAILED)


def cancel(connection: Connection, run_id: UUID, reason: str | None = None) -> bool:
    """Queued, reading, scoring, writing -> cancelled, and its job with it; whether this call did it.

    Raises:
        RunNotFound: There is none of that id.
        WrongState: It has ended in another way.
    """
    job_id = get(connection, run_id).job_id
    _cancel_job(connection, job_id)
    ended = connection.execute(_CANCEL, {"id": run_id, "reason": reason}).first()
    if ended is None:
        run = get(connection, run_id)
        if run.state is not RunState.CANCELLED:
            raise WrongState(f"run {run_id} is {run.state}: there is nothing left of it to cancel")
        return False
    if ended.job_id != job_id:  # it was bound to another in between
        _cancel_job(connection, ended.job_id)
    return True


def get(connection: Connection, run_id: UUID) -> RunInfo:
    """The run as its row says.

    Raises:
        RunNotFound: There is none of that id.
    """
    return info(_row(connection, run_id))


def before(connection: Connection, run_id: UUID) -> RunInfo | None:
    """The last run of the same schedule that was due before it and succeeded, if there is one."""
    row = connection.execute(
        text(f"""
            {_SELECT} WHERE runs.state = 'succeeded'
              AND runs.schedule_id = (SELECT schedule_id FROM runs WHERE id = :id)
              AND runs.due_at < (SELECT due_at FROM runs WHERE id = :id)
            ORDER BY runs.due_at DESC LIMIT 1
        """),
        {"id": run_id},
    ).first()
    return None if row is None else info(row)


def history(connection: Connection, schedule_name: str, limit: int = 50) -> list[RunInfo]:
    """The runs of a schedule, the one that was due last first.

    Raises:
        UnknownSchedule: There is none of that name.
    """
    schedule_id = connection.execute(
        text("SELECT id FROM schedules WHERE name = :name"), {"name": schedule_name}
    ).scalar_one_or_none()
    if schedule_id is None:
        raise UnknownSchedule(f"no schedule {schedule_name!r}; `batchmill schedules list` shows those that exist")
    rows = connection.execute(
        text(f"{_SELECT} WHERE runs.schedule_id = :id ORDER BY runs.due_at DESC LIMIT :limit"),
        {"id": schedule_id, "limit": limit},
    )
    return [info(row) for row in rows]


def info(row: Row[Any]) -> RunInfo:
    """A run of its columns and the name of its schedule."""
    return RunInfo.model_validate({name: row._mapping[name] for name in RunInfo.model_fields})


def _row(connection: Connection, run_id: UUID) -> Row[Any]:
    row = connection.execute(text(f"{_SELECT} WHERE runs.id = :id"), {"id": run_id}).first()
    if row is None:
        raise RunNotFound(f"no run {run_id}; `batchmill schedules history NAME` shows those of a schedule")
    return row


def _lease(connection: Connection, run_id: UUID, token: UUID) -> RunLease:
    row = _row(connection, run_id)
    stuck_for = row.stuck_for or timedelta(0)
    return RunLease(run=info(row), token=token, attempt=row.attempt, written=row.written, stuck_for=stuck_for)


def _gets_on(condition: str) -> str:
    """What a change forgets of deaths and of servers that did not answer, where it is a step ahead."""
    return (
        f"deaths = CASE WHEN {condition} THEN 0 ELSE deaths END,"
        f" stuck_since = CASE WHEN {condition} THEN NULL ELSE stuck_since END"
    )


_JSON = ("progress", "written", "changes", "drift")


def _fenced(connection: Connection, change: str, token: UUID, state: RunState | None = None, **values: Any) -> UUID:
    """Change the run that the token holds, in that state or in either; which run it is."""
    holds = HELD if state is None else f"state = '{state}'"
    statement = text(f"UPDATE runs SET {change} WHERE token = :token AND {holds} RETURNING id").bindparams(
        *(bindparam(name, type_=JSONB(none_as_null=True)) for name in _JSON if name in values)
    )
    run_id: UUID | None = connection.execute(statement, {"token": token, **values}).scalar_one_or_none()
    return run_id if run_id is not None else _lost()


def _lost() -> NoReturn:
    raise LeaseLost("the run is held by someone else by now, or was cancelled")


def _cancel_job(connection: Connection, job_id: UUID | None) -> None:
    """End the run's job; one that is still being received is nobody's then, and a tick removes it."""
    with suppress(JobNotFound):
        if job_id is None:
            return
        state = jobs.lock(connection, job_id)
        if state is not JobState.RECEIVING and not state.terminal:
            control.cancel(connection, job_id)


def _storable(message: str) -> str:
    """As much of a message as is kept, without passwords; what Postgres holds no text of is replaced."""
    return shown(message)[:MAX_MESSAGE].replace("\0", "\ufffd").encode(errors="replace").decode()
