"""What a model on disk gives for rows, computed as a worker computes them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ItemFailed
from contracts.models import ModelSpec
from contracts.names import Task
from contracts.params import parse_params
from worker.batcher import Block, MicroBatcher
from worker.compression.evaluation.order import Artifact
from worker.engines.base import Engine, Prepared
from worker.engines.registry import engine_class
from worker.forward import forward
from worker.outputs import OutputForm
from worker.preparing import prepare

PASS_TOKENS = 2_048
"""Padded tokens of a pass whose time nobody measures: what suits processors, and fits everywhere."""


@dataclass(frozen=True)
class Outputs:
    """Of the rows that a model could compute."""

    values: Mapping[int, Any]
    """By row: a vector `[d]`, or a JSON value."""
    errors: Mapping[int, ItemFailed]
    """By row: why there is none."""


def load(artifact: Artifact, task: Task, engine: str, device: str) -> Engine:
    """The model in the artifact's folder, through the engine that serves it.

    Raises:
        ModelLoadFailed: It could not be loaded.
    """
    spec = ModelSpec(
        id=0,
        name="evaluated",
        version=1,
        source=str(artifact.folder),
        revision=None,
        task=task,
        quantization=artifact.quantization,
        engine=engine,
        pool="evaluation",
        epoch=0,
        digest="",
        files=[],
        memory_bytes=0,
    )
    return engine_class(engine).load(spec, artifact.folder, device)


def compute(
    engine: Engine, payloads: Sequence[Any], task: Task, report: Callable[[float], None] = lambda _: None
) -> Outputs:
    """Outputs of all rows with the task's defaults, in passes of rows of similar length.

    Args:
        engine: Loaded.
        payloads: The rows.
        task: The engine's.
        report: Told the share of rows that are done.
    """
    params = parse_params(task, {})
    prepared = prepare(engine, payloads, params)
    form = OutputForm(task, params, type(engine).__name__)
    values: dict[int, Any] = {}
    errors = dict(prepared.errors)
    for places in passes(prepared, PASS_TOKENS):
        found = forward(engine, [prepared.rows[place] for place in places], params, form)
        computed = [] if found.outputs is None else found.outputs
        values.update({places[i]: output for i, output in zip(found.places, computed, strict=True)})
        errors.update({places[i]: error for i, error in found.errors.items()})
        report((len(values) + len(errors)) / len(payloads))
    return Outputs(values, errors)


def passes(prepared: Prepared, budget_tokens: int, chosen: NDArray[np.intp] | None = None) -> Iterator[list[int]]:
    """Places of rows that go through a model together, as the micro-batcher of a worker draws them.

    Args:
        prepared: The rows; those with an error are left out.
        budget_tokens: Padded tokens of a pass.
        chosen: The places to draw from; all by default.
    """
    good = [
        place
        for place in (range(len(prepared.rows)) if chosen is None else chosen.tolist())
        if place not in prepared.errors
    ]
    batcher = MicroBatcher()
    batcher.set_budget("all", budget_tokens)
    batcher.add(Block("all", 1, prepared.lengths[good]), now=0.0)
    while (batch := batcher.next(now=1.0)) is not None:
        [part] = batch.parts
        yield [good[i] for i in part.rows.tolist()]
