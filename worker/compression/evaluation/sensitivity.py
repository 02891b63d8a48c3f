"""Which layers bear a step: what it costs when one of them alone is treated as the step treats all."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from contracts.compression import Sensitivity
from contracts.errors import CompressionFailed
from contracts.names import Task
from contracts.recipes import PruneMagnitude, PruneStructured, Quantize, Step
from worker.compression.artifacts import transformer_folder
from worker.compression.evaluation.comparing import compare, lowered
from worker.compression.evaluation.order import Artifact, EvaluationOrder
from worker.compression.evaluation.outputs import compute, load
from worker.compression.sampling import evenly
from worker.engines.transformer import TransformerEngine
from worker.loading import quiet
from worker.onnx import GRAPH

ROWS = 8, 64
"""At least and at most."""
LAYERS = 24
"""Evenly chosen where a model has more."""
SECONDS = 30.0
"""About what all layers may take; where they would take longer, there are fewer rows."""


@dataclass(frozen=True)
class Subject:
    """The last step that treats layers, with what it was done to."""

    number: int
    """Of the step, from 1."""
    step: Step
    source: Artifact
    task: Task
    engine: str


def subject(order: EvaluationOrder, task: Task, engine: str) -> Subject | None:
    """The last step of the recipe that prunes or quantizes torch weights; None where there is none."""
    sources = (order.parent, *order.artifacts)
    for number, step in reversed(list(enumerate(order.recipe, 1))):
        source = sources[number - 1]
        graph = (transformer_folder(source.folder) / GRAPH).exists()
        if isinstance(step, PruneMagnitude | PruneStructured | Quantize) and not graph:
            return Subject(number, step, source, task, engine)
    return None


def measure(
    subject: Subject, payloads: Sequence[Any], report: Callable[[float], None] = lambda _: None
) -> list[Sensitivity]:
    """The fidelity of the step's source, one layer of it treated, to itself untreated; each layer in turn.

    Nothing where the model is no stack of layers. On a processor: layers are treated in memory, and stand nowhere on
    disk.

    Args:
        subject: The step.
        payloads: Rows, of which some are taken.
        report: Told the share that is done.

    Raises:
        ModelLoadFailed: The model could not be loaded.
    """
    with quiet():  # bitsandbytes has something to say when it is imported
        from worker.compression.steps.one_layer import names_of_blocks, treated
    engine = load(subject.source, subject.task, subject.engine, "cpu")
    whole = engine._module if isinstance(engine, TransformerEngine) else None
    if not isinstance(engine, TransformerEngine) or not isinstance(whole, PreTrainedModel):
        return []
    try:
        names = names_of_blocks(whole)
    except CompressionFailed:  # no stack of layers, and so nothing to tell
        return []
    chosen = [names[place] for place in evenly(len(names), LAYERS)]
    rows = [payloads[place] for place in evenly(len(payloads), ROWS[1])]
    began = time.perf_counter()
    parent = compute(engine, rows, subject.task).values
    affordable = SECONDS / (len(chosen) * (time.perf_counter() - began)) * len(rows)
    if affordable < len(rows):
        rows = [rows[place] for place in evenly(len(rows), max(int(affordable), ROWS[0]))]
        parent = compute(engine, rows, subject.task).values
    found = []
    for number, name in enumerate(chosen, 1):
        engine._module = treated(whole, subject.step, name)
        values = compute(engine, rows, subject.task).values
        if parent:
            fidelity = _fidelity(subject, parent, values)
            found.append(Sensitivity(step=subject.number, layer=name, fidelity=fidelity))
        report(number / len(chosen))
    return found


def _fidelity(subject: Subject, parent: Mapping[int, Any], values: Mapping[int, Any]) -> float:
    """Over all rows that the source computes untreated; 0 in those that it does not compute treated."""
    both = sorted(parent.keys() & values.keys())
    if not both:
        return 0.0
    before, after = ([of[row] for row in both] for of in (parent, values))
    scores = compare(subject.task, before, after, [None] * len(both), subject.source.folder)
    return lowered(subject.task, scores, len(both) / len(parent)).fidelity["fidelity"]
