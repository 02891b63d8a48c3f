"""What an evaluation is told, and what it answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.compression import Sensitivity, Stage
from contracts.names import Quantization, Task
from contracts.recipes import Step


@dataclass(frozen=True)
class Artifact:
    """A model on disk, as it is served."""

    title: str
    """What it is called in the report: `minilm@1`, `after step 1 (quantize nf4)`."""
    folder: Path
    quantization: Quantization


@dataclass(frozen=True)
class EvaluationOrder:
    """What is compared with what, and on which rows; it needs no database, no broker and no network."""

    task: Task
    engine: str
    """The entry point under `batchmill.engines` that serves all of these models."""
    parent: Artifact
    artifacts: tuple[Artifact, ...]
    """After each step of the recipe, in its order; the last is the result."""
    recipe: tuple[Step, ...]
    scratch: Path
    data: Path | None = None
    """JSON lines of `{"input": …}`, with a `"label"` where they have one; without it only sizes are told."""


@dataclass(frozen=True)
class Evaluated:
    """What was found; all of it plain data, as the report holds it."""

    stages: list[Stage]
    """The parent, and the model after each step."""
    sensitivity: list[Sensitivity]
    rows: int
    """That the parent computes, by which every stage is judged."""
    notes: list[str]
    machine: dict[str, Any]
