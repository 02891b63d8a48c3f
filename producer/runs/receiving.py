"""The first phase of a run: its source is read into a job, going on where an attempt before was cut."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Connection

from contracts.canonical import canonicalize
from contracts.errors import BatchmillError, InvalidInput, InvalidRequest
from contracts.models import ModelSpec
from contracts.names import Task
from contracts.params import parse_params
from contracts.runs import RunProgress
from contracts.sinks import SqlSink
from contracts.sources import BatchFileSource
from producer.drift import check_report
from producer.incoming import ContentDigest, lines
from producer.reading.lines import Entry
from producer.reading.opening import open_source
from producer.runs.bench import Bench
from producer.runs.held import Held
from producer.runs.watcher import Watcher
from producer.submission import (
    Opened,
    Submission,
    discard,
    open_job,
    passed_over,
    receive,
    seal_whole,
)
from producer.writing import open_sink
from storage import jobs, models, runs
from storage.artifacts import ArtifactStore
from storage.jobs import Arrived
from storage.modelfiles import dimensions

if TYPE_CHECKING:
    from producer.reading.reading import Reading

log = logging.getLogger(__name__)

LOOK_ROWS = 500
"""Between two looks whether the run is still held."""


def read(bench: Bench, held: Held, watcher: Watcher) -> None:
    """Reading -> scoring: every row of the source becomes a line of the run's job, once.

    Raises:
        InvalidInput: A row cannot be taken, and the spec does not say to leave it out; two rows share an id; there is
            no row; or the source cannot be read, or changed meanwhile.
        InvalidRequest: The model is unknown or of another task, or the sink does not take its results.
        UnavailableError: A server does not answer.
        LeaseLost: Someone else holds the run by now.
    """
    begun = None if held.run.job_id is None else _begun(bench, held.run.job_id)
    if begun is not None and not _Reception(bench, held, watcher).carry_out(begun):
        log.info("the source of run %s is another than when it was cut: it is read anew", held.run.id)
        discard(bench.database, begun.opened.job_id)
        begun = None
    if begun is None:
        _Reception(bench, held, watcher).carry_out(None)


@dataclass(frozen=True)
class _Begun:
    """A job that an attempt before left half received."""

    opened: Opened
    arrived: Arrived
    model: ModelSpec
    params: dict[str, Any]
    """As it was begun: a newer version of the model may have been registered since."""


def _begun(bench: Bench, job_id: UUID) -> _Begun | None:
    with bench.database.transaction() as connection:
        arrived = jobs.arrived(connection, job_id)
        if arrived is None:
            return None
        target = models.get_target(connection, arrived.target_id)
    return _Begun(Opened(job_id, target.id), arrived, target.model, target.params)


class _Reception:
    """One pass over the source."""

    def __init__(self, bench: Bench, held: Held, watcher: Watcher) -> None:
        self._bench = bench
        self._held = held
        self._watcher = watcher
        self._spec = held.run.spec
        self._bad = 0
        self._has_ids: bool | None = None

    def carry_out(self, begun: _Begun | None) -> bool:
        """Read everything and seal the job; False where the rows, or what is asked of them, are others by now."""
        bench, held, spec = self._bench, self._held, self._spec
        bench.publisher.prepare()
        with open_source(spec.source, max_input_bytes=bench.settings.max_input_bytes) as reading:
            submission = self._submission(begun, reading)
            if begun is not None and canonicalize(dict(submission.params)) != canonicalize(begun.params):
                return False
            day = bench.day_of(held.run)
            open_sink(spec.sink, day=day).check(submission.model, submission.params, self._width(submission.model))
            if spec.report is not None:
                check_report(spec.report, day)
            content = ContentDigest(submission.model, submission.params)
            leave_out = self._leave_out if spec.on_bad == "skip" else None
            source = lines(self._entries(reading), submission.model, leave_out, bench.settings.max_input_bytes)
            if begun is None:
                with bench.database.transaction() as connection:
                    opened = open_job(connection, submission)
                    runs.bind_job(connection, held.token, opened.job_id)
            elif passed_over(source, content, begun.arrived):
                opened = begun.opened
            else:
                return False

            def noted(connection: Connection) -> None:
                runs.note_progress(connection, held.token, self._progress(reading))

            receive(bench.database, opened.job_id, source, content, noted)
            reading.check_unchanged()
            self._watcher.seals()
            with bench.database.transaction() as connection:
                shards = seal_whole(connection, opened, submission, content.lines)
                noted(connection)
                runs.scoring(connection, held.token)
        bench.publisher.wake(opened.job_id, submission.model.pool, shards)
        return True

    def _submission(self, begun: _Begun | None, reading: "Reading") -> Submission:
        """What the job is asked."""
        spec = self._spec
        if begun is None:
            with self._bench.database.transaction() as connection:
                model = models.get(connection, spec.model)
        else:
            model = begun.model
        params = parse_params(model.task, {**(reading.params or {}), **spec.params})
        for task in filter(None, (spec.task, reading.task)):
            if task != model.task:
                raise InvalidRequest(
                    f"model {model.reference} computes {model.task}, and {task} is asked for: name another model"
                )
        return Submission(
            model=model,
            params=params,
            priority=spec.priority,
            metadata=spec.metadata,
            idempotency_key=None,
            expires_in=None if spec.expires_in is None else timedelta(seconds=spec.expires_in),
            callback_url=spec.callback_url if spec.progress_at else None,
            progress_at=spec.progress_at,
        )

    def _width(self, model: ModelSpec) -> int | None:
        """Dimensions of the model's vectors where a table has to suit them, if they are known before they are there."""
        if model.task is not Task.EMBED or not isinstance(self._spec.sink, SqlSink):
            return None
        try:
            return dimensions(ArtifactStore(self._bench.settings.artifacts_url), model)
        except BatchmillError as error:  # a runner need not reach the weights: the table is looked at again later
            log.info("the width of %s is not known beforehand: %s", model.reference, error)
            return None

    def _entries(self, reading: "Reading") -> Iterator[Entry]:
        for number, entry in enumerate(reading.entries()):
            if number % LOOK_ROWS == 0:
                self._held.check()
                self._watcher.reads(self._progress(reading))
            if entry.error is None and isinstance(self._spec.sink, SqlSink):
                self._check_id(entry)
            yield entry
        self._watcher.reads(self._progress(reading))

    def _check_id(self, entry: Entry) -> None:
        """See that a table gets ids, or places, and not both: one row's place may be another's id."""
        has, source = entry.custom_id is not None, self._spec.source
        if self._has_ids is None:
            if not has and not isinstance(source, BatchFileSource) and source.columns.id is not None:
                raise InvalidInput(f"the row has no {source.columns.id!r}, by which a table finds it", entry.where)
            self._has_ids = has
        elif has != self._has_ids:
            this, those = ("an id", "none") if has else ("no id", "one")
            raise InvalidInput(
                f"the row has {this}, and those before it have {those}: give each one, or none, for a table",
                entry.where,
            )

    def _progress(self, reading: "Reading") -> RunProgress:
        return RunProgress(
            rows_read=reading.rows_read,
            bytes_read=reading.bytes_read,
            rows=reading.rows,
            bytes=reading.bytes,
            bad=self._bad,
        )

    def _leave_out(self, error: InvalidInput) -> None:
        self._bad += 1
        self._watcher.leaves_out(error)
