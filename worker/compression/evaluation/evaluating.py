"""An evaluation, from the rows to what the report holds."""

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from contracts.compression import Measurement, Sensitivity, Stage
from contracts.errors import CompressionFailed
from contracts.names import Task
from contracts.settings import Settings
from worker.compression.evaluation import measurement, memory, notes, sensitivity
from worker.compression.evaluation.comparing import Scores, compare, lowered
from worker.compression.evaluation.machine import describe_machine
from worker.compression.evaluation.measuring import Subject
from worker.compression.evaluation.order import Artifact, Evaluated, EvaluationOrder
from worker.compression.evaluation.outputs import Outputs, compute, load
from worker.compression.evaluation.rows import Row, read_rows
from worker.compression.evaluation.weights import size_bytes
from worker.compression.order import Progress
from worker.hardware import detect
from worker.loading import load_tokenizer

OUTPUTS, SENSITIVITY = 0.4, 0.6
"""The shares of the whole at which outputs, and layers, are done; speed is measured last, when nothing else is."""


def evaluate(order: EvaluationOrder, progress: Progress) -> Evaluated:
    """Compare the parent with what each step left of it; every model is loaded from disk, by the engine that serves it.

    Raises:
        CompressionFailed: The rows cannot be read, or the parent can compute none of them.
        ModelLoadFailed: A model could not be loaded.
        ConfigurationError: The device that the settings name does not exist here.
    """
    hardware = detect(Settings())
    machine = describe_machine(hardware)
    models = [order.parent, *order.artifacts]
    if order.data is None:
        stages = [_stage(model, Scores(), None) for model in models]
        return Evaluated(stages, [], 0, notes.on_sizes(order, stages), machine)
    rows = read_rows(order.data)
    found = _judge(order, rows, hardware.device, progress)
    layers = _sensitivity(order, rows, progress)
    measured, spread = _measure(order, hardware.device, progress)
    stages = [_stage(model, scores, None) for model, scores in zip(models, found.scores, strict=True)]
    for place, of_model in measured.items():
        stages[place] = stages[place].model_copy(update={"measurement": of_model})
    said = [
        *found.notes,
        *notes.on_sizes(order, stages),
        *notes.on_rows(order.task, found.rows),
        *notes.on_measurements(order, stages, spread),
    ]
    progress(1.0, "evaluated")
    return Evaluated(stages, layers, found.rows, said, machine)


def _stage(model: Artifact, scores: Scores, measured: Measurement | None) -> Stage:
    return Stage(
        title=model.title,
        size_bytes=size_bytes(model.folder),
        quality=scores.quality,
        fidelity=scores.fidelity,
        loss=scores.loss,
        measurement=measured,
    )


def judged_by(order: EvaluationOrder) -> tuple[Task, str]:
    """The task and the engine whose outputs are compared: of what generates, how likely it finds the texts."""
    return (Task.SCORE, "score") if order.task is Task.GENERATE else (order.task, order.engine)


def payloads_of(order: EvaluationOrder, rows: Sequence[Row]) -> list[Any]:
    """What that engine takes: of prompts and chats the text that the model is given."""
    if order.task is not Task.GENERATE:
        return [row.payload for row in rows]
    return _texts(order.parent.folder, rows)


def _texts(folder: Path, rows: Sequence[Row]) -> list[str]:
    tokenizer = load_tokenizer(folder)
    return [
        row.payload
        if isinstance(row.payload, str)
        else str(tokenizer.apply_chat_template(row.payload["messages"], tokenize=False))
        for row in rows
    ]


class _Judged(NamedTuple):
    scores: list[Scores]
    """Of each stage."""
    rows: int
    """That the parent computes, by which all are judged."""
    notes: list[str]


def _judge(order: EvaluationOrder, rows: Sequence[Row], device: str, progress: Progress) -> _Judged:
    """Load and compute each stage, then compare it with the parent on the rows that the parent computes.

    Those that a model does not compute lower its fidelity, and no other's.
    """
    models = [order.parent, *order.artifacts]
    payloads = payloads_of(order, rows)
    outputs = [_outputs(order, place, payloads, device, progress) for place in range(len(models))]
    parent = outputs[0]
    if not parent.values:
        first = next(iter(parent.errors.values()))
        raise CompressionFailed(f"evaluation: {order.parent.title} can compute none of the rows: {first.message}")
    task, _ = judged_by(order)
    labels = {row: rows[row].label for row in sorted(parent.values)}
    scores = [_scores(task, parent, found, labels, order.parent.folder) for found in outputs]
    errors = [(model.title, found.errors) for model, found in zip(models, outputs, strict=True)]
    before = [parent.values[row] for row in labels]
    said = [
        *notes.on_errors(task, len(rows), errors),
        *notes.on_labels(task, before, list(labels.values()), order.parent.folder),
    ]
    return _Judged(scores, len(labels), said)


def _scores(task: Task, parent: Outputs, found: Outputs, labels: Mapping[int, Any], folder: Path) -> Scores:
    """Of a stage, by the rows that have an entry among the labels: those that the parent computes."""
    both = [row for row in labels if row in found.values]
    if not both:
        return Scores(fidelity={"fidelity": 0.0})
    before, after = ([of.values[row] for row in both] for of in (parent, found))
    scores = compare(task, before, after, [labels[row] for row in both], folder)
    return lowered(task, scores, len(both) / len(labels))


def _outputs(order: EvaluationOrder, place: int, payloads: Sequence[Any], device: str, progress: Progress) -> Outputs:
    """Of the parent, or of the model after a step; it is gone from memory afterwards."""
    models = [order.parent, *order.artifacts]
    title, share = models[place].title, OUTPUTS / len(models)
    progress(share * place, f"loading {title}")
    task, engine = judged_by(order)
    loaded = load(models[place], task, engine, device)
    found = compute(loaded, payloads, task, _part(progress, share * place, share * (place + 1), f"computing {title}"))
    del loaded
    gc.collect()
    return found


def _sensitivity(order: EvaluationOrder, rows: Sequence[Row], progress: Progress) -> list[Sensitivity]:
    subject = sensitivity.subject(order, *judged_by(order))
    if subject is None:
        return []
    message = f"treating one layer at a time: step {subject.number}"
    return sensitivity.measure(subject, payloads_of(order, rows), _part(progress, OUTPUTS, SENSITIVITY, message))


def _measure(order: EvaluationOrder, device: str, progress: Progress) -> tuple[dict[int, Measurement], float]:
    """By the place of the stage; the parent and the result are always among them."""
    assert order.data is not None
    models = [order.parent, *order.artifacts]
    subjects = [Subject(model, order.task, order.engine, order.data) for model in models]
    places = measurement.places([size_bytes(model.folder) for model in models], memory.free(device))
    report = _part(progress, SENSITIVITY, 1.0, "measuring speed and memory")
    ends = [0, len(models) - 1]
    try:
        found, spread = measurement.measure([subjects[place] for place in places], report)
    except CompressionFailed:
        if places == ends:
            raise
        # What stands between the two may not compute at all, as before a distillation that mends it.
        places = ends
        found, spread = measurement.measure([subjects[place] for place in places])
    return dict(zip(places, found, strict=True)), spread


def _part(progress: Progress, begin: float, end: float, message: str) -> Callable[[float], None]:
    """Progress of a part, told as progress of the whole."""
    progress(begin, message)
    return lambda done: progress(begin + (end - begin) * done, message)
