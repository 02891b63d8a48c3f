"""The last phase of a run: the results of its job go to the sink, and are compared with those of the run before."""

from collections.abc import Iterator
from datetime import date
from typing import Any

import pyarrow as pa

from contracts.errors import JobNotFound
from contracts.jobs import JobInfo
from contracts.models import TargetSpec
from contracts.runs import RunProgress
from producer import drift
from producer.job import Job
from producer.results import ResultReader
from producer.runs.bench import Bench
from producer.runs.held import Held
from producer.runs.watcher import Watcher
from producer.writing import open_sink
from storage import jobs, models, runs


def write(bench: Bench, held: Held, watcher: Watcher) -> None:
    """Writing -> succeeded: the sink holds every row, once, wherever an attempt before was cut.

    Raises:
        JobFailed: The job did not succeed: nothing of it is written.
        JobNotFound: The job was removed.
        InvalidRequest: The sink does not take the results.
        UnavailableError: A server does not answer, or the sink is full.
        LeaseLost: Someone else holds the run by now.
    """
    run, database = held.run, bench.database
    info = _ended_job(bench, held)
    day = bench.day_of(run)
    with database.transaction() as connection:
        target = models.get_target(connection, jobs.target_id(connection, info.id))

    def progress(rows: int) -> RunProgress:
        return run.progress.model_copy(update={"rows_written": rows})

    def note(written: dict[str, Any], rows: int) -> None:
        held.check()
        with database.transaction() as connection:
            runs.note_written(connection, held.token, written, progress(rows))

    results = _Watched(bench, info, target, held, watcher)
    rows = open_sink(run.spec.sink, day=day).write(results, held.written, note)
    held.check()
    with database.transaction() as connection:
        runs.note_progress(connection, held.token, progress(rows))
    _succeed(bench, held, info, day)


def _ended_job(bench: Bench, held: Held) -> JobInfo:
    if held.run.job_id is None:
        raise JobNotFound(f"the job of run {held.run.id} was removed before its results were written")
    with bench.database.transaction() as connection:
        info = jobs.get(connection, held.run.job_id)
    Job(bench.database, bench.publisher, info).check_success()
    return info


def _succeed(bench: Bench, held: Held, info: JobInfo, day: date) -> None:
    """Compare the run with the one before it, and say that it is done."""
    run, database = held.run, bench.database
    with database.transaction() as connection:
        before = runs.before(connection, run.id)
        changes = drift.changes(connection, run, before)
    moved = drift.drift(database, info.id, None if before is None else before.job_id, run.spec.thresholds)
    report = None
    if run.spec.report is not None:
        with database.transaction() as connection:
            series = [] if run.schedule is None else runs.history(connection, run.schedule)
        report = drift.write_report(database, run, changes, moved, series, run.spec.report, day)
    held.check()
    with database.transaction() as connection:
        runs.succeed(connection, held.token, changes, moved, report)


class _Watched(ResultReader):
    """Results on their way to a sink, as long as the run is held."""

    def __init__(self, bench: Bench, info: JobInfo, target: TargetSpec, held: Held, watcher: Watcher) -> None:
        super().__init__(bench.database, info.id, target, info.counts, None)
        self._rows = info.counts.items
        self._held = held
        self._watcher = watcher

    def batches(self, schema: pa.Schema, start: int = 0) -> Iterator[pa.RecordBatch]:
        for batch in super().batches(schema, start):
            self._held.check()
            yield batch
            start += len(batch)
            self._watcher.writes(start, self._rows)
