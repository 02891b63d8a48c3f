"""What a compression is to be, checked as far as it can be before any work: recipe, model, room."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel

from contracts.errors import DoesNotFit, InvalidRequest
from contracts.inputs import TEXT_ENGINES
from contracts.models import ModelSpec
from contracts.names import COMPRESSION_POOL, Quantization
from contracts.preflight import ModelSize, Needs, most_memory, needs
from contracts.recipes import Accept, Distill, Step, check_for_task, parse_accept, parse_recipe
from producer.compression.datasets import UNREAD, Datasets
from storage import models, overview, workers
from storage.artifacts import ArtifactStore
from storage.database import Database

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_UNPACKED = (Quantization.NONE, Quantization.BF16, Quantization.FP16)


@dataclass(frozen=True)
class Preflight:
    """What a recipe needs, and what there is."""

    needs: Needs
    """Of each step, and of the evaluation."""
    workers: int
    """That compress, heard of within a minute."""
    memory_bytes: int | None
    """Of the one that has the most; None when there is none."""

    def check(self) -> None:
        """Nothing when some worker has room, or none is known of: the one that comes looks for itself.

        Raises:
            DoesNotFit: All have less memory than a step needs.
        """
        need = most_memory(self.needs)
        if self.memory_bytes is not None and need.memory_bytes > self.memory_bytes:
            raise DoesNotFit(
                f"the recipe does not fit: {need.title} needs about {need.memory_bytes / 1e9:.1f} GB of memory, and no "
                f"worker of the pool {COMPRESSION_POOL} has more than {self.memory_bytes / 1e9:.1f} GB; give one more, "
                "or choose a smaller model or, to distill, a smaller batch"
            )


@dataclass(frozen=True)
class Plan:
    """A recipe that can be carried out, as far as is known; its data is not read yet."""

    parent: ModelSpec
    config: Mapping[str, Any]
    """The parent's `config.json`; empty where it has none."""
    steps: tuple[Step, ...]
    data: tuple[Any, ...]
    """Of each step: what the caller gave to distill, and None of others."""
    accept: Accept
    preflight: Preflight

    def read(self, datasets: Datasets) -> tuple[Step, ...]:
        """The steps, with their data in the artifact store.

        Raises:
            InvalidRequest: Data has no rows.
            InvalidInput: A row cannot be computed.
        """
        steps = tuple(
            step.model_copy(update={"data": datasets.make(f"step {number} of the recipe (distill)", given)})
            if isinstance(step, Distill)
            else step
            for number, (step, given) in enumerate(zip(self.steps, self.data, strict=True), 1)
        )
        check_for_task(steps, self.parent.task)  # once more: now it is known whether there are labels
        return steps


def make_plan(
    database: Database, store: ArtifactStore, model: str, recipe: Iterable[Any], *, accept: Any, evaluated: bool
) -> Plan:
    """Check a recipe for a model.

    Raises:
        UnknownModel: There is no such model, or none that a student is to be.
        InvalidRequest: A step cannot be done; the message names it.
        DoesNotFit: All workers that compress have less memory than a step needs.
    """
    with database.transaction() as connection:
        parent = models.get(connection, model)
    _check_parent(parent)
    given, data = _without_data(recipe)
    steps = parse_recipe(given, parent.quantization, onnx=_is_onnx(parent))
    check_for_task(steps, parent.task)
    asked = parse_accept(accept)
    if asked != Accept() and not evaluated:
        raise InvalidRequest(
            "accept asks for what is only known once the result is evaluated: give evaluate, some data"
        )
    config = read_config(store, parent)
    steps = _with_students(database, steps, parent, config)
    size = ModelSize.of(
        config,
        memory_bytes=parent.memory_bytes,
        disk_bytes=sum(file.size for file in parent.files),
        quantization=parent.quantization,
    )
    with database.transaction() as connection:
        limits = [
            worker.memory_limit
            for worker in workers.seen(connection, overview.HEARD_OF)
            if worker.pool == COMPRESSION_POOL
        ]
    preflight = Preflight(
        needs(steps, size, parent.task, evaluated=evaluated), len(limits), max(limits) if limits else None
    )
    preflight.check()
    return Plan(parent, config, steps, data, asked, preflight)


def _check_parent(parent: ModelSpec) -> None:
    if parent.engine not in TEXT_ENGINES or not parent.files:
        raise InvalidRequest(
            f"model {parent.reference} has no weights that are known here: it is computed by {parent.engine}; only "
            "models of transformers and of sentence-transformers can be compressed"
        )


def _is_onnx(model: ModelSpec) -> bool:
    return any(file.path.endswith(".onnx") for file in model.files)


def _without_data(recipe: Any) -> tuple[Any, tuple[Any, ...]]:
    """The steps with their data put aside, which is read when all else is known to be right; and that data."""
    if isinstance(recipe, (str, bytes, Mapping, BaseModel)) or not isinstance(recipe, Iterable):
        return recipe, ()  # refused by whoever parses it
    steps, data = [], []
    for step in recipe:
        found = None
        if isinstance(step, Distill):
            found = step.data
        elif isinstance(step, Mapping) and step.get("step") == "distill" and step.get("data") is not None:
            found = step["data"]
            step = {**step, "data": UNREAD}
        steps.append(dict(step) if isinstance(step, Mapping) else step)
        data.append(found)
    return steps, tuple(data)


def read_config(store: ArtifactStore, model: ModelSpec) -> Mapping[str, Any]:
    """A model's `config.json`; empty where it has none: a GGUF file says it all itself."""
    files = [file for file in model.files if file.path == "config.json"]
    if not files:
        return {}
    with TemporaryDirectory(prefix="batchmill-") as folder:
        config = json.loads((store.fetch(files, Path(folder)) / "config.json").read_bytes())
    return config if isinstance(config, dict) else {}


def _with_students(
    database: Database, steps: Sequence[Step], parent: ModelSpec, config: Mapping[str, Any]
) -> tuple[Step, ...]:
    """The steps, each student that is a registered model named with its version.

    Raises:
        UnknownModel: There is no such model.
        InvalidRequest: A layer does not exist, or another model cannot take the parent's place.
    """
    layers = next((config[name] for name in _LAYERS if type(config.get(name)) is int), None)
    found = []
    for number, step in enumerate(steps, 1):
        where = f"step {number} of the recipe (distill)"
        match step:
            case Distill(student=tuple(kept)):
                if layers is not None and kept[-1] >= layers:
                    raise InvalidRequest(
                        f"{where}: student keeps layer {kept[-1]}, and the model has {layers}, from 0 to {layers - 1}"
                    )
                layers = len(kept)
            case Distill(student=str(reference)):
                with database.transaction() as connection:
                    student = models.get(connection, reference)
                _check_student(where, student, parent)
                step, layers = step.model_copy(update={"student": student.reference}), None
        found.append(step)
    return tuple(found)


def _check_student(where: str, student: ModelSpec, parent: ModelSpec) -> None:
    _check_parent(student)
    if student.task is not parent.task:
        raise InvalidRequest(
            f"{where}: the student {student.reference} does {student.task}, and {parent.reference} does {parent.task}"
        )
    if _is_onnx(student) or student.quantization not in _UNPACKED:
        what = "an ONNX graph" if _is_onnx(student) else str(student.quantization)
        raise InvalidRequest(
            f"{where}: the student {student.reference} is {what}, which nothing trains; choose another"
        )
