"""What figures mean, in words: said of each evaluation, from its numbers alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contracts.compression import Measurement, Stage
from contracts.errors import ItemFailed
from contracts.names import Task
from contracts.recipes import PruneMagnitude, title
from worker.compression.evaluation.comparing import is_known, label_names
from worker.compression.evaluation.fidelity import NEIGHBOURS
from worker.compression.evaluation.measuring import NEW_TOKENS
from worker.compression.evaluation.order import EvaluationOrder
from worker.loading import gguf_file

CLEAR = 0.05
"""A smaller difference between two speeds is not called one."""
BUSY = 0.25
"""Rounds of a measurement that are further apart were disturbed."""


def on_sizes(order: EvaluationOrder, stages: Sequence[Stage]) -> list[str]:
    """Of bytes on disk."""
    ratio = stages[-1].size_bytes / stages[0].size_bytes
    if ratio <= 1:
        return []
    packed = gguf_file(order.parent.folder) is not None and gguf_file(order.artifacts[-1].folder) is None
    why = ": the parent is a GGUF file, whose weights had to be unpacked" if packed else ""
    return [f"The result takes {ratio:.2f} times the bytes of its parent{why}."]


def on_rows(task: Task, rows: int) -> list[str]:
    """Of how the rows were used."""
    if task is Task.EMBED and rows <= NEIGHBOURS:
        return [
            f"{rows} rows are too few for the overlap of the {NEIGHBOURS} nearest neighbours: give at least "
            f"{NEIGHBOURS + 1}."
        ]
    if task is Task.GENERATE:
        return [
            "Fidelity and loss are of the likelihood of the evaluation texts; latency and throughput are of continuing "
            f"each by at most {NEW_TOKENS} tokens."
        ]
    return []


def on_errors(task: Task, count: int, errors: Sequence[tuple[str, Mapping[int, ItemFailed]]]) -> list[str]:
    """Of rows that the parent does not compute, which are left out, and of those that it alone does, which count.

    Args:
        task: That they were judged by.
        count: Of rows.
        errors: Of each model, the parent first, its title and why it has no output for a row.
    """
    (parent, refused), *others = errors
    found = []
    if refused:
        found.append(
            f"{len(refused)} of {count} rows are left out: {parent} does not compute them ({_causes(refused)})."
        )
    judged = count - len(refused)
    for model, of_model in others:
        lost = {row: error for row, error in of_model.items() if row not in refused}
        if not lost:
            continue
        what = "each counts as a fidelity of 0, and the other figures are of the rows that it does compute"
        if len(lost) == judged:
            what = "so its fidelity is 0"
        elif task is Task.SCORE:
            what = "so its fidelity is 0, and the other figures are of the texts that it does score"
        found.append(
            f"{model} does not compute {len(lost)} of {judged} rows that {parent} does ({_causes(lost)}): {what}."
        )
    return found


def _causes(errors: Mapping[int, ItemFailed]) -> str:
    causes = Counter(error.item_code for error in errors.values())
    return ", ".join(f"{number} {code}" for code, number in causes.most_common())


def on_labels(task: Task, outputs: Sequence[Any], labels: Sequence[Any], folder: Path) -> list[str]:
    """Of labels that the model does not have."""
    given = [label for label in labels if label is not None]
    if task is not Task.CLASSIFY or not given:
        return []
    names = label_names(outputs, folder)
    if len(names) == 1:
        return []
    unknown = [label for label in given if not is_known(label, names)]
    if not unknown:
        return []
    return [
        f"{len(unknown)} of {len(given)} labels are none of the model's, such as {unknown[0]!r:.80}: their rows count "
        "for agreement, not for accuracy and F1."
    ]


def on_measurements(order: EvaluationOrder, stages: Sequence[Stage], spread: float) -> list[str]:
    """Of speed and memory: of each step beside the model that it was given, and of the result beside its parent."""
    before, after = stages[0].measurement, stages[-1].measurement
    assert before is not None
    assert after is not None
    steps = "step 1" if len(order.recipe) == 1 else f"the {len(order.recipe)} steps together"
    found = [*_on_steps(order, stages, spread), *_on_speed(steps, before, after), *_on_zeros(order, before, after)]
    if after.memory_bytes > before.memory_bytes * (1 + CLEAR):
        found.append(
            f"It takes more memory than before: {after.memory_bytes / 1e6:,.0f} MB while it computes, and its parent "
            f"{before.memory_bytes / 1e6:,.0f} MB."
        )
    if spread > BUSY:
        found.append(
            f"Something else was running: rounds of one measurement are {spread:.0%} apart, so that speeds are rough."
        )
    return found


def _on_steps(order: EvaluationOrder, stages: Sequence[Stage], spread: float) -> list[str]:
    """Of each of several steps that made the model slower; what was not measured on both sides is not told."""
    if len(order.recipe) == 1:
        return []
    found = []
    clear = max(CLEAR, min(spread, BUSY))  # many comparisons: less than what rounds lie apart is chance
    measured = [stage.measurement for stage in stages]
    for number, (step, before, after) in enumerate(zip(order.recipe, measured, measured[1:], strict=False), 1):
        if before is None or after is None or (speed := after.throughput / before.throughput) >= 1 - clear:
            continue
        source = "its parent" if number == 1 else f"the model after step {number - 1}"
        found.append(
            f"Step {number} ({title(step)}) made the model slower here: {speed:.2f} times the inputs a second of "
            f"{source}."
        )
    return found


def _on_speed(steps: str, before: Measurement, after: Measurement) -> list[str]:
    speed, wait = after.throughput / before.throughput, after.latency_p50 / before.latency_p50
    found = []
    if speed < 1 - CLEAR:
        found.append(
            f"{_capital(steps)} made the model slower here: {speed:.2f} times the inputs a second of its parent."
        )
    elif speed <= 1 + CLEAR:
        found.append(f"{_capital(steps)} made the model neither faster nor slower here.")
    if wait > 1 + CLEAR and speed >= 1 - CLEAR:
        found.append(f"A single input takes longer than before: {wait:.2f} times its parent's time.")
    return found


def _on_zeros(order: EvaluationOrder, before: Measurement, after: Measurement) -> list[str]:
    if not any(isinstance(step, PruneMagnitude) for step in order.recipe):
        return []
    zeros, zeros_before = (1 - of.nonzeros / of.parameters for of in (after, before))
    return [
        f"{zeros:.0%} of the result's parameters are zero, and {zeros_before:.0%} of its parent's: by itself this "
        "gains neither time nor bytes, as dense kernels compute zeros and files hold them."
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
