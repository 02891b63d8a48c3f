"""The last phase of a run: the results of its job go to the sink, and are compared with those of the run before."""

import logging
from collections.abc import Iterator
from datetime import date
from typing import Any

import pyarrow as pa

from contracts.errors import BatchmillError, DatabaseUnavailable, JobNotFound, describe
from contracts.jobs import JobInfo
from contracts.models import TargetSpec
from contracts.runs import Changes, Drift, RunInfo, RunProgress
from producer import drift
from producer.job import Job
from producer.results import ResultReader
from producer.runs.bench import Bench
from producer.runs.held import Held
from producer.runs.watcher import Watcher
from producer.writing import open_sink
from storage import jobs, models, runs

log = logging.getLogger(__name__)


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
    samples = drift.Samples()
    if before is not None or run.spec.report is not None:
        samples = drift.read_samples(database, info.id, None if before is None else before.job_id)
    moved = drift.measure(samples, run.spec.thresholds)
    report, problem = _report(bench, run, changes, moved, samples, day)
    held.check()
    with database.transaction() as connection:
        runs.succeed(connection, held.token, changes, moved, report, problem)


def _report(
    bench: Bench, run: RunInfo, changes: Changes, moved: Drift | None, samples: drift.Samples, day: date
) -> tuple[str | None, str | None]:
    """Where the report is, or why it is nowhere: the sink has every row by now, so the run does not fail of that."""
    if run.spec.report is None:
        return None, None
    with bench.database.transaction() as connection:
        series = [] if run.schedule is None else runs.history(connection, run.schedule)
    try:
        return drift.write_report(bench.database, run, changes, moved, series, samples, run.spec.report, day), None
    except DatabaseUnavailable:
        raise
    except BatchmillError as error:
        log.warning("run %s has no report: %s", run.id, error)
        return None, f"no report was written: {error}"
    except Exception as error:
        log.exception("run %s has no report, for a reason that nobody thought of", run.id)
        return None, f"no report was written: {describe(error)}"


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
