"""What the process of one step is told, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from contracts.compression import Training
from contracts.names import Quantization, Task

Progress: TypeAlias = Callable[[float, str], None]
"""Told how far a step is, 0 to 1, and in a few words what it does; cheap, and may be called at any time."""


@dataclass(frozen=True)
class Order:
    """Where a step reads and writes; it needs no database, no broker and no network."""

    task: Task
    source: Path
    """The artifact before: a model's folder, laid out as what was registered; never written to."""
    quantization: Quantization
    """Of the artifact before."""
    parent: Path
    """The model that the recipe began with."""
    destination: Path
    """Empty; all files of the new artifact go here, so that the engine of the task loads it as it loaded the source."""
    scratch: Path
    """Kept between attempts at the same step, and removed after it."""
    parent_quantization: Quantization = Quantization.NONE
    data: Path | None = None
    """Of a distillation: its rows, JSON lines."""
    teacher: Path | None = None
    """Of a distillation of embeddings or labels: what the parent gave for each row, float32 `[rows, n]`, as .npy.

    Vectors as the embed engine gives them; of classifiers the scores of all labels, in the order of `id2label`.
    """
    student: Path | None = None
    """Of a distillation into another registered model: its folder."""
    evaluate: Path | None = None
    """Of an export: the rows that the result is evaluated on, JSON lines, where there are any."""


@dataclass(frozen=True)
class Outcome:
    """What a step says of itself, beside the files that it wrote."""

    quantization: Quantization
    notes: list[str] = field(default_factory=list)
    training: Training | None = None
