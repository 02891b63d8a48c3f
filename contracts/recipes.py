"""Recipes: what is to be done to a model to make it smaller, step by step, and what has to come of it."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from contracts.errors import InvalidRequest
from contracts.models import ArtifactFile
from contracts.names import Quantization

MOST_STEPS = 16

Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Probability: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class _Model(BaseModel):
    """Frozen; what it does not know is refused, and so is what only looks like the right type."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Dataset(_Model):
    """Rows that a step or an evaluation reads: JSON lines of `{"input": …}`, with a `"label"` where they have one."""

    file: ArtifactFile
    rows: int = Field(gt=0)
    labelled: bool = False


class PruneMagnitude(_Model):
    """Set the weights of linear layers to zero that are closest to it (L1, unstructured).

    The file and the time of a pass stay what they were on dense kernels; what is gained is sparsity.
    """

    step: Literal["prune"] = "prune"
    method: Literal["magnitude"] = "magnitude"
    scope: Literal["global", "layer"] = "global"
    """Whether all layers share one threshold, or each keeps the same share of its own."""
    keep_ratio: Share | None = None
    threshold: Annotated[float, Field(gt=0)] | None = None
    """Weights of a smaller magnitude become zero."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "PruneMagnitude":
        if (self.keep_ratio is None) == (self.threshold is None):
            raise ValueError("give either keep_ratio or threshold")
        if self.threshold is not None and self.scope == "layer":
            raise ValueError("a threshold is the same for every layer: leave scope out, or give keep_ratio")
        return self


class PruneStructured(_Model):
    """Remove the feed-forward neurons and attention heads with the smallest norms, the same number in each layer."""

    step: Literal["prune"] = "prune"
    method: Literal["structured"]
    keep_ratio: Share
    """Of the neurons, and of the heads; at least one of each stays."""
    parts: tuple[Literal["neurons", "heads"], ...] = Field(default=("neurons", "heads"), min_length=1)
    norm: Literal["l1", "l2"] = "l2"


class Quantize(_Model):
    """Hold weights in fewer bits: by bitsandbytes, or, behind an export, by ONNX Runtime (`int8`, dynamic)."""

    step: Literal["quantize"] = "quantize"
    method: Literal["nf4", "fp4", "int8", "bf16", "fp16"]
    double: bool = False
    """Of nf4 and fp4: whether the scales of blocks are quantized as well."""
    granularity: Literal["tensor", "channel"] | None = None
    """Of int8 by ONNX Runtime: what shares a scale and a zero point; each channel has its own by default."""
    symmetric: bool | None = None
    """Of int8 by ONNX Runtime: whether zero points of weights are zero; they are by default."""

    @model_validator(mode="after")
    def _double_where_there_are_blocks(self) -> "Quantize":
        if self.double and self.method not in ("nf4", "fp4"):
            raise ValueError(f"double is an option of nf4 and fp4, not of {self.method}")
        if self.method != "int8" and (self.granularity is not None or self.symmetric is not None):
            raise ValueError(f"granularity and symmetric are options of int8 behind an export, not of {self.method}")
        return self

    @property
    def quantization(self) -> Quantization:
        """What the model is registered as."""
        return Quantization(f"{self.method}-double" if self.double else self.method)


class Augmentation(_Model):
    """How texts are varied while a student learns; each is the probability for one token or word."""

    token_dropout: Probability = 0.0
    word_swap: Probability = 0.0
    word_deletion: Probability = 0.0


class Distill(_Model):
    """Train a student to give the outputs of the model that the recipe began with."""

    step: Literal["distill"] = "distill"
    student: tuple[Annotated[int, Field(ge=0)], ...] | str | None = None
    """Layers of the model so far to keep, ascending; or another registered model; or, by default, all of the model."""
    data: Dataset
    loss: Literal["cosine", "mse", "kl"] | None = None
    """Of embeddings cosine (the default) or mse; of classifiers and language models kl."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Of kl: both distributions are softened by it."""
    hard_weight: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of kl: the share of the loss on labels, where there are any, or on the next token; the rest is the teacher's.

    By default 0.5, and 0 for a classifier without labels.
    """
    optimizer: Literal["adamw", "sgd", "rmsprop", "adamw-8bit"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, lt=10)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: Probability = 0.1
    """The share of all updates in which the learning rate rises to its full height."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 3
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows of an update, over all processes."""
    max_tokens: Annotated[int, Field(ge=8, le=8192)] = 128
    """Longer rows are cut."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    augmentation: Augmentation = Augmentation()
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """The share of rows that the student never learns from; early stopping looks at them."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Looks at the held-out rows without a gain, four an epoch, after which training stops."""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    seed: int = 0

    @field_validator("student")
    @classmethod
    def _ascending(cls, student: tuple[int, ...] | str | None) -> tuple[int, ...] | str | None:
        if isinstance(student, tuple) and (not student or sorted(set(student)) != list(student)):
            raise ValueError("list the layers that stay, ascending, each once")
        return student


class Export(_Model):
    """Write the model as an ONNX graph with dynamic axes, from weights that are not quantized."""

    step: Literal["export"] = "export"
    format: Literal["onnx"] = "onnx"


Prune: TypeAlias = Annotated[PruneMagnitude | PruneStructured, Field(discriminator="method")]
Step: TypeAlias = Annotated[Prune | Quantize | Distill | Export, Field(discriminator="step")]
_STEP: TypeAdapter[Step] = TypeAdapter(Step)


class Evaluation(_Model):
    """What the result is measured on, beside its parent."""

    data: Dataset


class Accept(_Model):
    """What the result must reach, or it is kept as rejected; what is not given is not asked."""

    fidelity: Annotated[float, Field(gt=0, le=1)] | None = None
    """At least: mean cosine of embeddings, agreement of classifiers, perplexity before over after."""
    size_ratio: Annotated[float, Field(gt=0)] | None = None
    """At most: bytes on disk after over before."""
    speedup: Annotated[float, Field(gt=0)] | None = None
    """At least: throughput after over before."""


def parse_recipe(
    recipe: Iterable[Any], quantization: Quantization = Quantization.NONE, *, onnx: bool = False
) -> tuple[Step, ...]:
    """The steps of a recipe, each valid, in an order that can be run.

    Args:
        recipe: Dicts, as in JSON or YAML, or the typed objects of this module.
        quantization: Of the model that it begins with.
        onnx: Whether that model is an ONNX graph.

    Raises:
        InvalidRequest: A step or an option is unknown, or a step cannot follow the one before; names both.

    >>> parse_recipe([{"step": "quantize", "method": "nf4"}])
    (Quantize(step='quantize', method='nf4', double=False, granularity=None, symmetric=None),)
    """
    if isinstance(recipe, (str, bytes, dict, BaseModel)) or not isinstance(recipe, Iterable):
        raise InvalidRequest("a recipe is a list of steps, such as [{'step': 'quantize', 'method': 'nf4'}]")
    steps = tuple(_parse_step(number, step) for number, step in enumerate(recipe, 1))
    if not 0 < len(steps) <= MOST_STEPS:
        raise InvalidRequest(f"a recipe of {len(steps)} steps: give 1 to {MOST_STEPS}")
    _check_order(steps, quantization, onnx)
    return steps


def _parse_step(number: int, step: Any) -> Step:
    if isinstance(step, BaseModel):
        step = step.model_dump()
    if not isinstance(step, dict):
        raise InvalidRequest(f"step {number} of the recipe: expected an object with 'step', got {step!r:.80}")
    if step.get("step") == "prune" and "method" not in step:
        raise InvalidRequest(f"step {number} of the recipe (prune): give method, 'magnitude' or 'structured'")
    try:
        return _STEP.validate_python(step)
    except ValidationError as error:
        raise InvalidRequest(f"step {number} of the recipe ({step.get('step', '?')}): {_first(error)}") from None


def _first(error: ValidationError) -> str:
    """What is wrong first, in one line, with the name of its field."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kinds = ("prune", "quantize", "distill", "export", "magnitude", "structured")
    place = ".".join(str(part) for part in found["loc"] if part not in kinds)
    return f"{place}: {found['msg']}" if place else found["msg"]


def _check_order(steps: Sequence[Step], quantization: Quantization, onnx: bool) -> None:
    packed = quantization not in (Quantization.NONE, Quantization.BF16, Quantization.FP16)
    for number, step in enumerate(steps, 1):
        refusal = _refusal(step, packed, onnx, quantization)
        if refusal:
            raise InvalidRequest(f"step {number} of the recipe ({step.step}): {refusal}")
        if isinstance(step, Export):
            onnx = True
        elif isinstance(step, Quantize):
            quantization = step.quantization
            packed = packed or step.method not in ("bf16", "fp16")


def _refusal(step: Step, packed: bool, onnx: bool, quantization: Quantization) -> str | None:
    """Why a step cannot follow, where it cannot."""
    if packed:
        what = {"quantize": "is quantized twice", "export": "is exported"}.get(step.step, "is changed")
        return f"the weights are {quantization} already, and nothing {what}; put it before, or begin with another model"
    if isinstance(step, Quantize):
        if onnx and step.method != "int8":
            return f"an ONNX graph is quantized as int8, not {step.method}; quantize instead of exporting"
        if not onnx and (step.granularity is not None or step.symmetric is not None):
            return "granularity and symmetric are options of ONNX Runtime; put an export before"
        if quantization is not Quantization.NONE and step.method in ("bf16", "fp16"):
            return f"the weights are {quantization} already"
    elif onnx:
        return "an ONNX graph is only quantized; put it before the export"
    return None
