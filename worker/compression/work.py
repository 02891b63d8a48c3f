"""One compression under its lease: step after step to a registered model."""

import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from contracts import logs
from contracts.compression import CompressionSpec, Report, StepResult
from contracts.errors import ArtifactsUnavailable, CompressionFailed, DatabaseUnavailable, InvalidRequest, LeaseLost
from contracts.events import job_link
from contracts.models import ArtifactFile, TargetSpec
from contracts.names import Task
from contracts.preflight import EVALUATION, ModelSize, needs
from contracts.recipes import Dataset, Distill, Step, title
from contracts.settings import Settings
from contracts.states import JobState
from contracts.tracing import Span
from storage import compressions, inputs, jobs, models, results, shards
from storage.artifacts import ArtifactStore, manifest_digest
from storage.counting import ShardOutcome
from storage.database import Database
from storage.shards import Lease
from worker.compression import room, supervision, teachers
from worker.compression.notes import ProgressNotes
from worker.compression.order import Order
from worker.compression.scratch import Scratch
from worker.compression.supervision import Interrupted, StepFailed
from worker.compression.wire import ORDER, OUTCOME
from worker.serving import patiently

log = logging.getLogger(__name__)

PAGE = "report.html"
_WEIGHTS = (".safetensors", ".onnx", ".gguf")


class Paused(Exception):
    """Somebody paused the job: what is done stays, and the lease is given back."""


@dataclass(frozen=True)
class Means:
    """What all compressions of a process work with."""

    settings: Settings
    database: Database
    store: ArtifactStore
    environment: dict[str, str]
    """Of subprocesses."""
    command: Sequence[str] = supervision.COMMAND
    """What starts one."""


@dataclass(frozen=True)
class Held:
    """A claimed compression."""

    lease: Lease
    target: TargetSpec
    spec: CompressionSpec
    prefixes: list[int]
    """Inputs: the recipe up to each of its steps."""
    finish: int
    """The input whose result is the model."""

    @classmethod
    def of(cls, database: Database, lease: Lease, target: TargetSpec) -> "Held":
        """What the lease's job is about."""
        with database.transaction() as connection:
            *prefixes, finish = inputs.ids_of_job(connection, lease.job_id)
            return cls(lease, target, compressions.get(connection, lease.job_id), prefixes, finish)


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
        self._leaving = leaving
        self._span = span
        self._notes = ProgressNotes(means.database, held.lease)
        self._lease = timedelta(seconds=means.settings.lease_seconds)

    def run(self) -> None:
        """Do what has no result yet, register the model and close the shard.

        Raises:
            StepFailed: A step cannot be done; names it.
            Interrupted: The lease is lost, or the process is to end.
            Paused: The job is.
            LeaseLost: It was, at the very end.
            DatabaseUnavailable: Postgres has been away for as long as a lease lasts.
            ArtifactsUnavailable: The artifact store is away, or this host's cache cannot be written.
        """
        done: list[StepResult] = []
        for position, step in enumerate(self._held.spec.recipe, 1):
            known = self._known(self._held.prefixes[position - 1])
            if known is None:
                with self._naming(position, title(step), f"step {position} ({title(step)})"):
                    known = self._step(position, step, done)
            done.append(known)
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
        except Exception as error:
            if isinstance(error, ArtifactsUnavailable) and not supervision.disk_is_full(error):
                raise  # another time, or on another host
            failed = StepFailed.of(error)
            raise StepFailed(failed.code, f"{named}: {failed}") from error

    def _step(self, position: int, step: Step, done: Sequence[StepResult]) -> StepResult:
        began = time.monotonic()
        self._check_room(position, done)
        order, notes = self._order(position, step, done)
        request = {"do": "step", "step": step.model_dump(mode="json"), "order": ORDER.dump_python(order, mode="json")}
        outcome = OUTCOME.validate_python(self._subprocess(request))
        files = self._means.store.add(order.destination)
        if not files:
            raise CompressionFailed("it wrote no file")
        result = StepResult(
            files=files,
            digest=manifest_digest(files),
            format="onnx" if any(file.path.endswith(".onnx") for file in files) else "torch",
            quantization=outcome.quantization,
            size_bytes=sum(file.size for file in files),
            seconds=time.monotonic() - began,
            notes=[*notes, *outcome.notes],
            training=outcome.training,
        )
        input_id = self._held.prefixes[position - 1]
        patiently(lambda: self._store(input_id, result), self._lease, self._leaving, log)
        self._scratch.done(position)
        log.info("step %d (%s) left %d bytes after %.1f s", position, title(step), result.size_bytes, result.seconds)
        return self._known(input_id) or result  # another job may have been faster with the same

    def _order(self, position: int, step: Step, done: Sequence[StepResult]) -> tuple[Order, list[str]]:
        """What the step is told, and what is to be said of that."""
        parent, folder = self._held.target.model, self._parent
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
        )
        return order, notes

    def _lesson(self, position: int, dataset: Dataset, parent: Path) -> tuple[Path, Path | None, int]:
        """Rows, what the teacher gave for them where that is computed beforehand, and how many rows are left out."""
        rows = self._rows(dataset)
        job_id = self._held.spec.teachers.get(dataset.file.sha256)
        if job_id is None:
            return rows, None, 0
        seconds = self._means.settings.compression_step_seconds
        info = teachers.wait(self._means.database, job_id, self._notes.note, self._wait, seconds)
        labels = _labels(parent) if info.task is Task.CLASSIFY else None
        lesson = teachers.write(self._means.database, info, rows, labels, self._scratch.of(position))
        return lesson.data, lesson.teacher, lesson.left_out

    def _student(self, step: Distill) -> Path | None:
        if not isinstance(step.student, str):
            return None
        with self._means.database.transaction() as connection:
            model = models.get(connection, step.student)
        if model.task is not self._held.target.model.task:
            raise InvalidRequest(f"student {model.reference} does {model.task}, and not {self._held.target.model.task}")
        return self._means.store.fetch(model.files, self._means.settings.cache)

    def _finish(self, done: Sequence[StepResult]) -> None:
        self._check_room(len(done) + 1, done)
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
        patiently(lambda: self._register(report, html, done[-1]), self._lease, self._leaving, log)

    def _register(self, report: Report, html: ArtifactFile, last: StepResult) -> None:
        """The model, the result of the last input and the end of the job: all of it, or nothing."""
        held, parent = self._held, self._held.target.model
        with self._means.database.transaction() as connection:
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
                memory_bytes=sum(file.size for file in last.files if file.path.endswith(_WEIGHTS)),
                rejected=report.verdict == "rejected",
            )
            results.insert(connection, self._new(held.finish, {"model": model.reference, "verdict": report.verdict}))
            shards.close(connection, held.lease, ShardOutcome({}))
        log.info("%s is registered: %s", model.reference, report.verdict)

    def _known(self, input_id: int) -> StepResult | None:
        """What a step left, of this job or another."""
        with self._means.database.transaction() as connection:
            found = results.outputs(connection, self._held.target.id, [input_id])
        return StepResult.model_validate(found[input_id]) if found else None

    def _store(self, input_id: int, result: StepResult) -> None:
        with self._means.database.transaction() as connection:
            results.insert(connection, self._new(input_id, json.loads(result.model_dump_json())))
            shards.revive(connection, self._held.lease)

    def _new(self, input_id: int, output: Any) -> results.NewResults:
        return results.NewResults(
            target_id=self._held.target.id,
            input_ids=np.array([input_id], np.int64),
            shard_ids=results.shard_bytes(self._held.lease.shard_id)[None],
            truncated=np.zeros(1, np.bool_),
            outputs=[output],
        )

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

    def _check_room(self, position: int, done: Sequence[StepResult]) -> None:
        """See whether the step, or the evaluation behind the last one, fits, and the disk holds all that follows it."""
        parent, spec = self._held.target.model, self._held.spec
        config = self._parent / "config.json"
        size = ModelSize.of(
            json.loads(config.read_text()) if config.exists() else {},
            memory_bytes=parent.memory_bytes,
            disk_bytes=sum(file.size for file in parent.files),
            quantization=parent.quantization,
        )
        found = needs(spec.recipe, size, parent.task, evaluated=spec.evaluate is not None)
        fetched = self._scratch.fetched()
        missing = sum(result.size_bytes for result in done if not (fetched / result.digest).is_dir())
        room.check(found[position - 1 :], self._scratch.folder, missing)

    def _go_on(self) -> None:
        """Stop here where somebody paused the job or took it away."""
        if self._interrupted.is_set():
            raise Interrupted
        with self._means.database.transaction() as connection:
            if jobs.get(connection, self._held.lease.job_id).state is JobState.PAUSED:
                raise Paused

    def _wait(self, seconds: float) -> None:
        if self._interrupted.wait(seconds):
            raise Interrupted
        self._go_on()


def _labels(folder: Path) -> list[str]:
    """The names of a classifier's outputs, in their order: the engine that gave them made sure that they are there."""
    named = json.loads((folder / "config.json").read_text())["id2label"]
    return [named[str(place)] for place in range(len(named))]
