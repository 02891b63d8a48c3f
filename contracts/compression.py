"""What a compression job is asked, and what it reports: shared by client, database and worker."""

from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from contracts.models import ArtifactFile
from contracts.names import Quantization, Task
from contracts.recipes import Accept, Evaluation, Step

Format = Literal["torch", "onnx"]
Verdict = Literal["accepted", "rejected", "not evaluated"]


class _Model(BaseModel):
    # A loss that is not a number is a fact to keep, and JSON has no number for it.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class CompressionSpec(_Model):
    """What `client.compress` hands over, all data resolved to files of the artifact store."""

    name: str
    """The model's that the result becomes the next version of."""
    recipe: tuple[Step, ...]
    evaluate: Evaluation | None = None
    accept: Accept = Accept()
    teachers: dict[str, UUID] = {}
    """By the SHA-256 of a distillation's rows: the job that scores them with the parent, its items in their order."""


class StepProgress(_Model):
    """How far the step is that runs now."""

    position: int
    """From 1; one beyond the last step while the result is evaluated."""
    title: str
    fraction: float
    """Of this step, 0 to 1."""
    seconds_left: float | None = None
    """Of this step; None as long as nothing is known."""
    message: str = ""


class TrainingPoint(_Model):
    """A look at a training."""

    update: int
    epoch: float
    loss: float
    """Mean over the updates since the last look."""
    held_out_loss: float
    learning_rate: float


class Training(_Model):
    """How a distillation went."""

    points: list[TrainingPoint]
    stopped: Literal["finished", "early", "diverged"]
    kept_update: int
    """The update after which the weights stood that were kept."""


class StepResult(_Model):
    """What a step left: the output that is stored for the recipe up to it."""

    files: list[ArtifactFile]
    digest: str
    format: Format
    quantization: Quantization
    size_bytes: int
    seconds: float
    notes: list[str] = []
    """What a reader of the report should know, a sentence each."""
    training: Training | None = None


class Measurement(_Model):
    """What a model takes and gives, measured after loading it from disk, in a process of its own."""

    size_bytes: int
    parameters: int
    nonzeros: int
    memory_bytes: int
    """The most that the process held while it computed, less what it held before it loaded the model."""
    load_seconds: float
    latency_p50: float
    """Seconds of one input by itself, tokenized and computed."""
    latency_p95: float
    throughput: float
    """Inputs a second, in micro-batches of the measured budget."""
    tokens_per_second: float
    budget_tokens: int


class Stage(_Model):
    """The model before the first step, or after one."""

    title: str
    size_bytes: int
    quality: dict[str, float]
    """Of its own: accuracy and macro_f1 where rows have labels, nll and perplexity of language models."""
    fidelity: dict[str, float]
    """To the parent. `fidelity` is what the gate asks for; the others depend on the task."""
    loss: float | None = None
    """On the evaluation rows: of labels where there are any, else nll, else 1 - mean cosine, else KL to
    the parent, or for bare numbers the mean absolute difference."""
    measurement: Measurement | None = None
    """Always of the parent and of the result; of the others where memory holds all of them at once."""


class Sensitivity(_Model):
    """What it costs when one layer alone is treated as the step treats all."""

    step: int
    layer: str
    fidelity: float


class Criterion(_Model):
    """One number that was asked."""

    name: Literal["fidelity", "size_ratio", "speedup"]
    asked: float
    found: float
    met: bool


class Report(_Model):
    """All of it, as `report.json` holds it."""

    job: UUID
    parent: str
    model: str
    task: Task
    recipe: tuple[Step, ...]
    verdict: Verdict
    rows: int
    stages: list[Stage]
    results: list[StepResult]
    sensitivity: list[Sensitivity]
    criteria: list[Criterion]
    notes: list[str]
    """What is said plainly: a step that made the model slower here, a training that diverged."""
    machine: dict[str, Any]
    """Processor, cores, and the versions of what computed."""


class CompressionInfo(_Model):
    """A compression as its row says."""

    job: UUID
    spec: CompressionSpec
    progress: StepProgress | None
    """Of the step that runs, or ran last; None before the first and once all is done."""
    verdict: Verdict | None
    """None until the result is registered."""
    model: str | None
    """The result, `name@version`."""
    report: Report | None
    html: ArtifactFile | None
    """The report as a page, in the artifact store."""
