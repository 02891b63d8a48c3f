"""`client.schedules`: runs that begin by themselves, and what became of each."""

import builtins
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from contracts import cron as crons
from contracts.errors import InvalidRequest
from contracts.names import check_schedule_name
from contracts.runs import CatchUp, OnBad, Overlap, RunInfo, ScheduleInfo, Thresholds
from contracts.states import Priority
from producer.runs.spec import check_spec
from storage import runs, schedules
from storage.database import Database


class Schedules:
    """The register of schedules, and the history of their runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        name: str,
        cron: str,
        *,
        source: Any,
        model: str,
        sink: Any,
        timezone: str = "UTC",
        task: str | None = None,
        params: Mapping[str, Any] | None = None,
        callback_url: str | None = None,
        overlap: Overlap = "skip",
        catch_up: CatchUp = "latest",
        priority: str = Priority.BULK,
        metadata: Mapping[str, Any] | None = None,
        on_bad: OnBad = "stop",
        report: str | Path | None = None,
        thresholds: Mapping[str, float | None] | Thresholds | None = None,
    ) -> ScheduleInfo:
        """Have a source scored into a sink whenever a cron line says; runners carry it out.

        Args:
            name: What it is called.
            cron: Five fields: minute, hour, day of the month, month, day of the week; `30 2 * * *` is 02:30 daily.
            source: A path or URL of files, or a mapping as `contracts.sources` has it: `{"url": …, "query": …}`.
            model: `name`, for its newest version at each run, or `name@version`.
            sink: A path or URL of a file or (with `/` at its end) a folder, or a mapping as `contracts.sinks` has it:
                `{"url": …, "table": …}`. `{date}` in a URL stands for the day that a run is due.
            timezone: The clock that cron goes by, `Europe/Berlin`.
            task: What the model has to compute; whatever it computes when not given.
            params: Of the task, as `contracts.params` has them.
            callback_url: Hears `run.completed`, `run.failed` and `schedule.drift`; an endpoint must be registered.
            overlap: What becomes of a run that is due while another is open: `skip`, `queue`, or `cancel` the other.
            catch_up: Which runs are made up for that were due while nothing could begin them: `latest`, `all`, `none`.
            priority: Of its jobs: `interactive`, `normal` or `bulk`.
            metadata: Sent with its webhooks: JSON values under string keys, up to 8 kB.
            on_bad: What a row does that cannot be taken: `stop` the run before anything is written, or `skip` it.
            report: Where an HTML report of each run goes: a path or URL, with `{date}`.
            thresholds: How far results may move before `schedule.drift`: `{"psi": …, "ks": …, "cosine": …}`.

        Raises:
            UnknownModel: No such model.
            UnknownTask: No such task.
            InvalidParams: No such parameter, or no such value.
            RefusedUrl: The callback's URL is none that webhooks are sent to.
            UnknownEndpoint: No endpoint is registered for it, or it is disabled.
            InvalidRequest: The name is taken, the cron line never fires, the zone is unknown, or another argument
                cannot be carried out.
            DatabaseUnavailable: Postgres does not answer.
        """
        check_schedule_name(name)
        crons.check(cron, timezone)
        _one_of("overlap", overlap, get_args(Overlap))
        _one_of("catch_up", catch_up, get_args(CatchUp))
        spec = check_spec(
            self._database,
            source=source,
            model=model,
            sink=sink,
            task=task,
            params=params,
            priority=priority,
            metadata=metadata,
            callback_url=callback_url,
            on_bad=on_bad,
            report=report,
            thresholds=thresholds,
        )
        with self._database.transaction() as connection:
            return schedules.add(
                connection,
                name=name,
                cron=" ".join(cron.split()),
                timezone=timezone,
                spec=spec,
                overlap=overlap,
                catch_up=catch_up,
            )

    def list(self) -> list[ScheduleInfo]:
        """Every schedule, by name."""
        with self._database.transaction() as connection:
            return schedules.list_all(connection)

    def get(self, name: str) -> ScheduleInfo:
        """A schedule, with its newest run.

        Raises:
            UnknownSchedule: There is none of that name.
        """
        with self._database.transaction() as connection:
            return schedules.get(connection, name)

    def pause(self, name: str) -> ScheduleInfo:
        """Begin no more runs; what is open goes on, and what is due meanwhile is not made up for.

        Raises:
            UnknownSchedule: There is none of that name.
        """
        with self._database.transaction() as connection:
            schedules.pause(connection, name)
            return schedules.get(connection, name)

    def resume(self, name: str) -> ScheduleInfo:
        """Begin runs again, from the next time on that it is due.

        Raises:
            UnknownSchedule: There is none of that name.
        """
        with self._database.transaction() as connection:
            schedules.resume(connection, name)
            return schedules.get(connection, name)

    def run_now(self, name: str) -> RunInfo:
        """A run that is due at once, whether the schedule is paused or not; it obeys the schedule's `overlap`.

        Raises:
            UnknownSchedule: There is none of that name.
        """
        with self._database.transaction() as connection:
            return schedules.run_now(connection, name)

    def history(self, name: str, limit: int = 50) -> builtins.list[RunInfo]:
        """The runs of a schedule, the one that was due last first.

        Raises:
            UnknownSchedule: There is none of that name.
        """
        with self._database.transaction() as connection:
            return runs.history(connection, name, limit)

    def remove(self, name: str) -> None:
        """Remove a schedule and its history; an open run is cancelled with its job, what was written stays.

        Raises:
            UnknownSchedule: There is none of that name.
        """
        with self._database.transaction() as connection:
            schedules.remove(connection, name)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidRequest(f"{name} {value!r}: choose one of {', '.join(choices)}")
