"""Whether each step suits the model that it meets: its layers, its family, and who is to take its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.errors import InvalidRequest
from contracts.families import FAMILIES, known_families
from contracts.inputs import TEXT_ENGINES
from contracts.models import ModelSpec, is_graph
from contracts.names import Task
from contracts.preflight import LAYERS, WIDTHS, ModelSize, number
from contracts.recipes import Distill, PruneStructured, Step
from storage import models
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.modelfiles import poolings, read_config, vocabulary


@dataclass(frozen=True)
class Suited:
    """Steps that can be done, as far as the files of models say."""

    steps: tuple[Step, ...]
    """Each student that is a registered model is named with its version."""
    students: Mapping[str, ModelSize]
    """Of these models, by their references."""


@dataclass(frozen=True)
class Known:
    """A registered model and its `config.json`."""

    model: ModelSpec
    config: Mapping[str, Any]


def suit(database: Database, store: ArtifactStore, steps: Sequence[Step], parent: Known) -> Suited:
    """Check the steps against the models that they are done to.

    Raises:
        UnknownModel: A student is not registered.
        InvalidRequest: A layer does not exist, parts of a model to be pruned are not known, or a student cannot take
            the parent's place.
    """
    before, layers = parent, number(parent.config, LAYERS)
    found, students = [], {}
    for place, step in enumerate(steps, 1):
        where = f"step {place} of the recipe ({step.step})"
        match step:
            case PruneStructured():
                _check_family(where, before)
            case Distill(student=tuple(kept)):
                if layers is not None and kept[-1] >= layers:
                    raise InvalidRequest(
                        f"{where}: student keeps layer {kept[-1]}, and the model has {layers}, from 0 to {layers - 1}"
                    )
                layers = len(kept)
            case Distill(student=str(reference)):
                with database.transaction() as connection:
                    model = models.get(connection, reference)
                before = Known(model, read_config(store, model))
                _check_student(where, store, before, parent)
                step, layers = step.model_copy(update={"student": model.reference}), number(before.config, LAYERS)
                students[model.reference] = ModelSize.of_model(model, before.config)
        found.append(step)
    return Suited(tuple(found), students)


def check_parent(parent: ModelSpec) -> None:
    """Make sure that a model has weights that steps can change.

    Raises:
        InvalidRequest: It has none, or none that are known here.
    """
    if parent.engine not in TEXT_ENGINES or not parent.files:
        raise InvalidRequest(
            f"model {parent.reference} has no weights that are known here: it is computed by {parent.engine}; only "
            "models of transformers and of sentence-transformers can be compressed"
        )


def _check_family(where: str, before: Known) -> None:
    kind = before.config.get("model_type")
    if isinstance(kind, str) and kind not in FAMILIES:
        raise InvalidRequest(
            f"{where}: {before.model.reference} is of the family {kind}, whose parts are not known: "
            f"{known_families()}; choose method magnitude, or leave the step out"
        )


def _check_student(where: str, store: ArtifactStore, student: Known, parent: Known) -> None:
    model, teacher = student.model, parent.model
    check_parent(model)
    if model.task is not teacher.task:
        raise InvalidRequest(
            f"{where}: the student {model.reference} does {model.task}, and {teacher.reference} does {teacher.task}"
        )
    if (graph := is_graph(model.files)) or model.quantization.packed:
        what = "an ONNX graph" if graph else str(model.quantization)
        raise InvalidRequest(f"{where}: the student {model.reference} is {what}, which nothing trains; choose another")
    if (refusal := _mismatch(store, student, parent)) is not None:
        raise InvalidRequest(f"{where}: the student {model.reference} {refusal}")


def _mismatch(store: ArtifactStore, student: Known, parent: Known) -> str | None:
    """Why a student of the same task cannot be taught by the parent, as far as their files say."""
    teacher = parent.model.reference
    match parent.model.task:
        case Task.EMBED:
            mine, its = _dimensions(store, student), _dimensions(store, parent)
            if mine and its and mine != its:
                return f"embeds in {mine} dimensions, and {teacher} in {its}: take a student of the same"
        case Task.CLASSIFY:
            mine, its = student.config.get("id2label"), parent.config.get("id2label")
            if mine != its:
                return f"has {_listed(mine)}, and {teacher} {_listed(its)}: take a student with the same"
        case Task.GENERATE | Task.SCORE:
            mine, its = (number(one.config, ["vocab_size"]) for one in (student, parent))
            if mine and its and mine != its:
                return f"chooses among {mine:,} tokens, and {teacher} among {its:,}: take a student of its family"
            words, others = (vocabulary(store, one.model) for one in (student, parent))
            if words and others and words != others:
                return f"has another vocabulary than {teacher}, so nothing compares: take a student of its family"
    return None


def _dimensions(store: ArtifactStore, one: Known) -> int | None:
    """Of an encoder's vectors, where its files say them."""
    width, count = number(one.config, WIDTHS), poolings(store, one.model)
    return width * count if width and count else None


def _listed(labels: Any) -> str:
    named = ", ".join(str(name) for name in labels.values()) if isinstance(labels, Mapping) else ""
    return f"the labels {named:.200}" if named else "no labels"
