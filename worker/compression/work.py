"""One compression under its lease: step after step to a registered model."""

import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from contracts import logs
from contracts.compression import Report, StepResult
from contracts.errors import (
    ArtifactError,
    ArtifactsUnavailable,
    CompressionFailed,
    DatabaseUnavailable,
    InvalidRequest,
    LeaseLost,
)
from contracts.events import job_link
from contracts.models import ArtifactFile, is_graph
from contracts.names import COMPRESSION_POOL, Task
from contracts.preflight import EVALUATION
from contracts.recipes import Dataset, Distill, Export, Step, title
from contracts.states import JobState
from contracts.tracing import Span
from storage import claims, compressions, jobs, models, results, shards
from storage.artifacts import manifest_digest
from storage.counting import ShardOutcome
from worker.compression import supervision, teachers
from worker.compression.held import Held, Means
from worker.compression.notes import ProgressNotes
from worker.compression.order import Order
from worker.compression.outlook import Outlook
from worker.compression.patience import PatientDatabase
from worker.compression.prefixes import Prefixes, loaded_size
from worker.compression.scratch import Scratch
from worker.compression.supervision import Interrupted, Postponed, StepFailed
from worker.compression.wire import ORDER, OUTCOME

log = logging.getLogger(__name__)

PAGE = "report.html"


class Paused(Exception):
    """Somebody paused the job: what is done stays, and the lease is given back."""


class Compression:
    """A compression, from wherever the last worker left it.

    Args:
        means: Of the process.
        held: What is to be done.
        scratch: Where files are kept meanwhile.
        interrupted: Set when the lease is lost or the process is to end.
        leaving: Set when the process is to end.
        span: Of its trace.
    """

    def __init__(
        self,
        means: Means,
        held: Held,
        scratch: Scratch,
        interrupted: threading.Event,
        leaving: threading.Event,
        span: Span,
    ) -> None:
        self._means = means
        self._held = held
        self._scratch = scratch
        self._interrupted = interrupted
        self._span = span
        self._notes = ProgressNotes(means.database, held.lease)
        self._database = PatientDatabase(means.database, timedelta(seconds=means.settings.lease_seconds), leaving)
        self._prefixes = Prefixes(self._database, held.lease)
        self._outlook = Outlook(means, held, scratch, self._database)

    def run(self) -> None:
        """Do what has no result yet, register the model and close the shard.

        Raises:
            StepFailed: A step cannot be done; names it.
            Interrupted: The lease is lost, or the process is to end.
            Paused: The job is.
            Postponed: What it needs is not there now: memory, its teacher, or what another job is about to leave.
            LeaseLost: It was, at the very end.
            DatabaseUnavailable: Postgres has been away for as long as a lease lasts.
            ArtifactsUnavailable: The artifact store is away, or this host's cache cannot be written.
        """
        done: list[StepResult] = []
        for position, step in enumerate(self._held.spec.recipe, 1):
            with self._naming(position, title(step), f"step {position} ({title(step)})"):
                done.append(self._result(position, step, done))
        with self._naming(len(done) + 1, EVALUATION, EVALUATION):
            self._finish(done)

    @contextmanager
    def _naming(self, position: int, name: str, named: str) -> Iterator[None]:
        """Whatever fails inside fails the job, with the step's name; lines that are logged have it too."""
        self._go_on()
        self._notes.begin(position, name)
        try:
            with logs.bound(step=position), self._span.step(name):
                yield
        except (Interrupted, Paused, LeaseLost, DatabaseUnavailable):
            raise
        except Postponed as error:
            self._notes.note(0.0, str(error))
            raise
        except Exception as error:
            if isinstance(error, ArtifactsUnavailable) and not supervision.disk_is_full(error):
                raise  # another time, or on another host
            failed = StepFailed.of(error)
            raise StepFailed(failed.code, f"{named}: {failed}") from error

    def _result(self, position: int, step: Step, done: Sequence[StepResult]) -> StepResult:
        """What the step left, of this job or another; what the artifact store lacks of it is made again."""
        input_id = self._held.prefixes[position - 1]
        known = self._prefixes.known(input_id)
        loss = None if known is None else self._loss(known)
        if known is not None and loss is None:
            return known
        if known is None and (other := self._prefixes.done_by(input_id)) is not None:
            raise Postponed(f"waiting for job {other}, which is at the same step")
        self._outlook.check(position, done)
        result = self._step(position, step, done)
        if known is None:
            self._prefixes.store(input_id, result)
            known = self._prefixes.known(input_id) or result  # another job may have been faster with the same
        else:
            self._restore(position, known, result, loss)
        self._scratch.done(position)
        return known

    def _loss(self, known: StepResult) -> ArtifactError | None:
        """Why what a step left cannot be had."""
        try:
            self._artifact(known.files)
        except ArtifactError as error:
            return error
        return None

    def _restore(self, position: int, known: StepResult, result: StepResult, loss: ArtifactError | None) -> None:
        """Put back what a step left: a result that is kept does not change, so it must be the same."""
        if result.digest != known.digest:
            reference = self._held.target.model.reference
            raise CompressionFailed(
                f"what it left is lost ({loss}), and is not the same when it is made again: run `batchmill models "
                f"invalidate {reference}` and submit again, which begins anew"
            )
        self._means.store.restore(self._scratch.written(position), known.files)
        log.warning("step %d: what it left was lost, and is made again: %s", position, loss)

    def _step(self, position: int, step: Step, done: Sequence[StepResult]) -> StepResult:
        began = time.monotonic()
        order, notes = self._order(position, step, done)
        request = {"do": "step", "step": step.model_dump(mode="json"), "order": ORDER.dump_python(order, mode="json")}
        outcome = OUTCOME.validate_python(self._subprocess(request))
        files = self._means.store.add(order.destination)
        if not files:
            raise CompressionFailed("it wrote no file")
        result = StepResult(
            files=files,
            digest=manifest_digest(files),
            format="onnx" if is_graph(files) else "torch",
            quantization=outcome.quantization,
            size_bytes=sum(file.size for file in files),
            seconds=time.monotonic() - began,
            notes=[*notes, *outcome.notes],
            training=outcome.training,
        )
        log.info("step %d (%s) left %d bytes after %.1f s", position, title(step), result.size_bytes, result.seconds)
        return result

    def _order(self, position: int, step: Step, done: Sequence[StepResult]) -> tuple[Order, list[str]]:
        """What the step is told, and what is to be said of that."""
        parent, folder, evaluate = self._held.target.model, self._parent, self._held.spec.evaluate
        data = teacher = student = None
        notes = []
        if isinstance(step, Distill):
            student = self._student(step)
            data, teacher, left_out = self._lesson(position, step.data, folder)
            if left_out:
                notes.append(f"{left_out} rows were left out: the teacher has no output for them.")
        order = Order(
            task=parent.task,
            source=self._artifact(done[-1].files) if done else folder,
            quantization=done[-1].quantization if done else parent.quantization,
            parent=folder,
            destination=self._scratch.destination(position),
            scratch=self._scratch.of(position),
            parent_quantization=parent.quantization,
            data=data,
            teacher=teacher,
            student=student,
            evaluate=self._rows(evaluate.data) if evaluate is not None and isinstance(step, Export) else None,
        )
        return order, notes

    def _lesson(self, position: int, dataset: Dataset, parent: Path) -> tuple[Path, Path | None, int]:
        """Rows, what the teacher gave for them where that is computed beforehand, and how many rows are left out."""
        rows = self._rows(dataset)
        job_id = self._held.spec.teachers.get(dataset.file.sha256)
        if job_id is None:
            return rows, None, 0
        seconds = self._means.settings.compression_step_seconds
        waiting = self._held.lease.job_id
        info = teachers.wait(self._database, job_id, waiting, self._notes.note, self._wait, seconds)
        labels = teachers.labels_of(parent) if info.task is Task.CLASSIFY else None
        lesson = teachers.write(self._database, info, rows, labels, self._scratch.of(position))
        return lesson.data, lesson.teacher, lesson.left_out

    def _student(self, step: Distill) -> Path | None:
        if not isinstance(step.student, str):
            return None
        model = self._database.transact(partial(models.get, reference=step.student))
        if model.task is not self._held.target.model.task:
            raise InvalidRequest(f"student {model.reference} does {model.task}, and not {self._held.target.model.task}")
        return self._means.store.fetch(model.files, self._means.settings.cache)

    def _finish(self, done: Sequence[StepResult]) -> None:
        self._outlook.check(len(done) + 1, done)
        held, parent = self._held, self._held.target.model
        evaluate = held.spec.evaluate
        named = zip(held.spec.recipe, done, strict=True)
        page = self._scratch.destination(len(done) + 1) / PAGE
        artifacts: list[dict[str, Any]] = [
            {"title": parent.reference, "folder": str(self._parent), "quantization": parent.quantization},
            *(
                {
                    "title": f"after step {position} ({title(step)})",
                    "folder": str(self._artifact(result.files)),
                    "quantization": result.quantization,
                }
                for position, (step, result) in enumerate(named, 1)
            ),
        ]
        order = {
            "task": parent.task,
            "engine": parent.engine,
            "parent": artifacts[0],
            "artifacts": artifacts[1:],
            "recipe": [step.model_dump(mode="json") for step in held.spec.recipe],
            "scratch": str(self._scratch.of(len(done) + 1)),
            "data": None if evaluate is None else str(self._rows(evaluate.data)),
        }
        about = {
            "job": str(held.lease.job_id),
            "parent": parent.reference,
            "model": held.spec.name,
            "results": [json.loads(result.model_dump_json()) for result in done],
            "accept": held.spec.accept.model_dump(mode="json"),
        }
        report = Report.model_validate(
            self._subprocess({"do": "evaluate", "order": order, "about": about, "page": str(page)})
        )
        [html] = self._means.store.add(page.parent, [PAGE])
        memory_bytes = loaded_size(self._artifact(done[-1].files), done[-1])
        self._database.transact(
            partial(self._register, report=report, html=html, last=done[-1], memory_bytes=memory_bytes)
        )

    def _register(
        self, connection: Connection, report: Report, html: ArtifactFile, last: StepResult, memory_bytes: int
    ) -> None:
        """The model, the result of the last input and the end of the job: all of it, or nothing."""
        held, parent = self._held, self._held.target.model
        model = compressions.finish(
            connection,
            held.lease,
            report=report,
            html=html,
            source=job_link(held.lease.job_id),
            task=parent.task,
            quantization=last.quantization,
            engine=parent.engine,
            pool=parent.pool,
            digest=last.digest,
            files=last.files,
            memory_bytes=memory_bytes,
            rejected=report.verdict == "rejected",
        )
        output = {"model": model.reference, "verdict": report.verdict}
        results.insert(connection, self._prefixes.new(held.finish, output))
        shards.close(connection, held.lease, ShardOutcome({}))
        log.info("%s is registered: %s", model.reference, report.verdict)

    def _subprocess(self, request: dict[str, Any]) -> dict[str, Any]:
        return supervision.run(
            request,
            seconds=self._means.settings.compression_step_seconds,
            interrupted=self._interrupted,
            progress=self._notes.note,
            environment=self._means.environment,
            command=self._means.command,
            inherited=(self._scratch.lock,),
        )

    @cached_property
    def _parent(self) -> Path:
        """The folder of the model that the recipe begins with."""
        return self._means.store.fetch(self._held.target.model.files, self._means.settings.cache)

    def _artifact(self, files: Sequence[ArtifactFile]) -> Path:
        """The folder of what a step left, its sums checked."""
        return self._means.store.fetch(files, self._scratch.fetched())

    def _rows(self, dataset: Dataset) -> Path:
        return self._artifact([dataset.file]) / dataset.file.path

    def _go_on(self) -> None:
        """Stop here where somebody paused the job or took it away."""
        if self._interrupted.is_set():
            raise Interrupted
        if self._database.transact(partial(jobs.get, job_id=self._held.lease.job_id)).state is JobState.PAUSED:
            raise Paused

    def _wait(self, seconds: float) -> None:
        """Let time pass until the teacher is done, unless another compression could use it."""
        if self._interrupted.wait(seconds):
            raise Interrupted
        self._go_on()
        if self._database.transact(partial(claims.any_claimable, pool=COMPRESSION_POOL)):
            raise Postponed("waiting for the teacher, while another compression goes on")
