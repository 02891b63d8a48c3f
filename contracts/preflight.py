"""What the steps of a recipe need of memory and disk: reckoned beforehand, on the safe side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from contracts.models import ModelSpec
from contracts.names import Quantization, Task
from contracts.recipes import Distill, Export, PruneMagnitude, PruneStructured, Quantize, Step, title

PROCESS_BYTES = 500_000_000
"""What a process holds once torch and transformers are imported."""
EVALUATION = "evaluation"
_FLOAT = 4
_ACTIVATIONS = 20
"""Floats that a layer keeps of a token until the gradient comes back, in widths of the model (the feed-forward part
has four of them); attention's own are few at the lengths that are trained on."""
_PASS_TOKENS, _PASS_LOGITS = 2_048, 2**25
"""What goes through a student at once on a processor, unless one row has more."""
_LOGITS = 5
"""Copies of a token's logits while two distributions are compared: of teacher and student, softened, the gradient."""

WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Keys of `config.json`, by family."""


@dataclass(frozen=True)
class ModelSize:
    """What is known of a model before it is loaded."""

    memory_bytes: int
    """What its weights take when they are loaded."""
    float_bytes: int
    """What they take in float32, in which students learn and graphs are traced."""
    disk_bytes: int
    width: int
    """Of a token between layers, in numbers."""
    layers: int
    vocabulary: int

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        *,
        memory_bytes: int,
        disk_bytes: int,
        quantization: Quantization = Quantization.NONE,
    ) -> "ModelSize":
        """From a model's `config.json`; what it does not say is taken for that of a large encoder."""
        halved = quantization in (Quantization.BF16, Quantization.FP16)
        return cls(
            memory_bytes=memory_bytes,
            float_bytes=memory_bytes * (2 if halved else 1),
            disk_bytes=disk_bytes,
            width=number(config, WIDTHS) or 1024,
            layers=number(config, LAYERS) or 24,
            vocabulary=number(config, ("vocab_size",)) or 50_000,
        )

    @classmethod
    def of_model(cls, model: ModelSpec, config: Mapping[str, Any]) -> "ModelSize":
        """The same of a registered model."""
        return cls.of(
            config,
            memory_bytes=model.memory_bytes,
            disk_bytes=sum(file.size for file in model.files),
            quantization=model.quantization,
        )


@dataclass(frozen=True)
class Need:
    """What one step takes at most."""

    title: str
    memory_bytes: int
    """Of all its processes together."""
    disk_bytes: int
    """Of what it writes: its artifact in the store and in a folder, where the next step reads a copy; checkpoints."""


Needs: TypeAlias = Sequence[Need]


def needs(
    steps: Iterable[Step],
    parent: ModelSize,
    task: Task,
    *,
    evaluated: bool = False,
    students: Mapping[str, ModelSize] | None = None,
) -> Needs:
    """What each step of a recipe needs, and the evaluation after the last.

    Args:
        steps: In their order.
        parent: Of the model that the recipe begins with.
        task: What the model computes.
        evaluated: Whether the result is measured beside its parent.
        students: Of the registered models that a distillation goes on with, by their references; one that is not here
            is taken to be as large as the model before.
    """
    found, size, memory, disk = [], parent, parent.memory_bytes, parent.disk_bytes
    largest = memory
    for step in steps:
        if (
            isinstance(step, Distill)
            and isinstance(step.student, str)
            and (known := (students or {}).get(step.student))
        ):
            size = known
            memory, disk = size.float_bytes, size.disk_bytes  # it is saved in the type of the model before
        found.append(Need(title(step), _memory(step, memory, size, parent, task), _disk(step, memory, disk, size)))
        memory, disk = _after(step, memory, disk, size)
        largest = max(largest, memory)
    if evaluated:
        # The evaluating process stays while two others, with the first model and the last, are measured in turns.
        found.append(Need(EVALUATION, 3 * PROCESS_BYTES + 2 * largest, 0))
    return found


def most_memory(found: Needs) -> Need:
    """The step that needs the most memory: steps run one after the other."""
    return max(found, key=lambda need: need.memory_bytes)


def all_disk(found: Needs) -> int:
    """Bytes that the whole recipe writes: what steps leave is kept."""
    return sum(need.disk_bytes for need in found)


def _memory(step: Step, weights: int, size: ModelSize, parent: ModelSize, task: Task) -> int:
    match step:
        case Distill():
            # Weights, their gradients and two moments each; teacher and student of a language model side by side.
            generates = task in (Task.GENERATE, Task.SCORE)
            state = 4 * size.float_bytes + (parent.memory_bytes if generates else 0)
            tokens = min(-(-step.batch_size // step.processes) * step.max_tokens, _PASS_TOKENS)
            if generates:
                tokens = min(tokens, _PASS_LOGITS // size.vocabulary)
            tokens = max(tokens, step.max_tokens)
            kept = size.layers * size.width * _ACTIVATIONS + (size.vocabulary * _LOGITS if generates else 0)
            return step.processes * (PROCESS_BYTES + state + tokens * kept * _FLOAT)
        case PruneMagnitude():
            return PROCESS_BYTES + 3 * weights  # all magnitudes at once, and their order
        case Export():
            return PROCESS_BYTES + 3 * size.float_bytes  # the graph beside the module, and in ONNX Runtime
        case _:
            return PROCESS_BYTES + 2 * weights


def _disk(step: Step, weights: int, disk: int, size: ModelSize) -> int:
    _, written = _after(step, weights, disk, size)
    # The weights, both moments and the best, in float32; the old ones stay while the new are written.
    checkpoint = 8 * size.float_bytes if isinstance(step, Distill) else 0
    return 2 * written + checkpoint


def _after(step: Step, memory: int, disk: int, size: ModelSize) -> tuple[int, int]:
    """Bytes in memory and on disk of what a step leaves, at most."""
    match step:
        case Quantize(method="bf16" | "fp16"):
            return memory // 2, disk // 2
        case Quantize():  # words' vectors stay as they are, and may be half of a small model
            return memory, disk
        case Export():
            return size.float_bytes, max(disk, size.float_bytes)
        case PruneStructured() | PruneMagnitude() | Distill():
            return memory, max(disk, memory)


def number(config: Mapping[str, Any], names: Iterable[str]) -> int | None:
    """What the first of these keys says of a config that has one."""
    for name in names:
        if type(value := config.get(name)) is int and value > 0:
            return value
    return None
