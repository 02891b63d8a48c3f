"""Recipes: what is to be done to a model to make it smaller, step by step, and what has to come of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from contracts.errors import InvalidRequest
from contracts.models import ArtifactFile
from contracts.names import Quantization, Task

MOST_STEPS = 16

Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Probability: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class _Model(BaseModel):
    """Frozen; what it does not know is refused."""

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
    """The share of weights that stay; it or a threshold is given."""
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
    """What is removed."""
    norm: Literal["l1", "l2"] = "l2"
    """What neurons and heads are ranked by: the sum of magnitudes, or the root of the sum of squares."""


class Quantize(_Model):
    """Hold weights in fewer bits: by bitsandbytes, or, behind an export, by ONNX Runtime (`int8`, dynamic)."""

    step: Literal["quantize"] = "quantize"
    method: Literal["nf4", "fp4", "int8", "bf16", "fp16"]
    """4-bit floats of two kinds, 8-bit integers, or 16-bit floats."""
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
    """A token is left out."""
    word_swap: Probability = 0.0
    """A word changes places with the next."""
    word_deletion: Probability = 0.0
    """A word is left out."""


class Distill(_Model):
    """Train a student to give the outputs of the model that the recipe began with."""

    step: Literal["distill"] = "distill"
    student: tuple[Annotated[int, Field(ge=0)], ...] | str | None = None
    """Layers of the model so far to keep, ascending; or another registered model; or, by default, all of the model."""
    data: Dataset
    """What it learns from."""
    loss: Literal["cosine", "mse", "kl"] | None = None
    """Of embeddings cosine (the default) or mse; of classifiers and language models kl."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Of kl: both distributions are softened by it."""
    hard_weight: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of kl: the share of the loss on labels, where there are any, or on the next token; the rest is the teacher's.

    By default 0.5, and 0 for a classifier without labels.
    """
    optimizer: Literal["adamw", "sgd", "rmsprop", "adamw-8bit"] = "adamw"
    """`adamw-8bit` is that of bitsandbytes, where the device has it."""
    learning_rate: Annotated[float, Field(gt=0, lt=10)] = 1e-4
    """At its height."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """The share of a weight that an update takes off, times the learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate goes on behind the warm-up: stays, or falls to 0 in a line or a half wave."""
    warmup: Probability = 0.1
    """The share of all updates in which the learning rate rises to its full height."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 3
    """Times that all rows are learned from."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows of an update, over all processes."""
    max_tokens: Annotated[int, Field(ge=8, le=8192)] = 128
    """Longer rows are cut."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients of a larger norm are scaled down to it."""
    augmentation: Augmentation = Augmentation()
    """How texts are varied; not at all by default."""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """The share of rows that the student never learns from; early stopping looks at them."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Looks at the held-out rows without a gain, four an epoch, after which training stops."""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """That train side by side and share each batch."""
    seed: int = 0
    """Of the order of rows, and of all that is drawn."""

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


def title(step: Step) -> str:
    """A step in a few words, for people."""
    match step:
        case PruneMagnitude(keep_ratio=None):
            return f"prune magnitude, below {step.threshold:g}"
        case PruneMagnitude() | PruneStructured():
            return f"prune {step.method}, keep {step.keep_ratio:.0%}"
        case Quantize():
            return f"quantize {step.quantization}"
        case Export():
            return f"export {step.format}"
        case Distill(student=tuple(layers)):
            return f"distill into {len(layers)} layers"
        case Distill(student=str(name)):
            return f"distill into {name}"
        case _:
            return "distill"


def titles(recipe: Iterable[Mapping[str, Any]]) -> list[str]:
    """The same of each step of a recipe that was carried out."""
    return [title(_STEP.validate_python(step)) for step in recipe]


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


_KINDS: dict[str, type[BaseModel]] = {
    "magnitude": PruneMagnitude,
    "structured": PruneStructured,
    "quantize": Quantize,
    "distill": Distill,
    "export": Export,
}
"""What pydantic names the parts of the union by."""
_STEPS = ("prune", "quantize", "distill", "export")


def _first(error: ValidationError) -> str:
    """What is wrong first, in one line, with the name of its option."""
    found = error.errors(include_url=False)[0]
    kinds = [_KINDS[part] for part in found["loc"] if part in _KINDS]
    parts = [part for part in found["loc"] if part not in _KINDS and part not in _STEPS]
    # Of a union such as a distillation's student, pydantic names the member that it tried as well: `tuple[…]`, `str`.
    place = ".".join(str(part) for part in parts if "[" not in str(part) and part not in ("str", "int", "float"))
    given, context = found["input"], found.get("ctx", {})
    match found["type"]:
        case "union_tag_not_found":
            return f"say what to do: step is one of {', '.join(_STEPS)}"
        case "union_tag_invalid" if context["discriminator"] == "'step'":
            return f"there is no such step; choose one of {', '.join(_STEPS)}"
        case "union_tag_invalid":
            return f"method: there is no {context['tag']!r}; choose magnitude or structured"
        case "extra_forbidden":
            known = f"; it takes {', '.join(kinds[-1].model_fields)}" if kinds and len(parts) == 1 else ""
            return f"there is no option {place!r}{known}"
        case "missing":
            return f"{place} is missing"
        case "literal_error":
            return f"{place}: there is no {given!r:.40}; choose {context['expected']}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"{place} is {given!r:.40}: {_bound(found['msg'])}"
        case "value_error":
            return f"{place}: {context['error']}" if place else str(context["error"])
        case _:
            return f"{place}: {found['msg'][0].lower()}{found['msg'][1:]}, not {given!r:.40}"


def _bound(message: str) -> str:
    """`Input should be less than 1` as `it must be less than 1`."""
    return message.replace("Input should be", "it must be")


def _check_order(steps: Sequence[Step], quantization: Quantization, onnx: bool) -> None:
    packed = quantization.packed
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
        if quantization.least_precision != "float32" and step.method in ("bf16", "fp16"):
            return f"the weights are {quantization} already"
    elif onnx:
        return "an ONNX graph is only quantized; put it before the export"
    return None


def parse_accept(accept: Any) -> Accept:
    """What a result must reach.

    Raises:
        InvalidRequest: A number is none that could be reached, or nobody measures what it is asked of.
    """
    if accept is None:
        return Accept()
    if isinstance(accept, Accept):
        return accept
    if not isinstance(accept, Mapping):
        raise InvalidRequest(f"accept {accept!r:.80}: give a mapping such as {{'fidelity': 0.98, 'size_ratio': 0.5}}")
    unknown = [str(name) for name in accept if name not in Accept.model_fields]
    if unknown:
        raise InvalidRequest(
            f"accept: nobody measures {unknown[0]!r:.40}; choose among {', '.join(Accept.model_fields)}"
        )
    try:
        return Accept.model_validate(dict(accept))
    except ValidationError as error:
        raise InvalidRequest(f"accept: {_first(error)}") from None


def check_for_task(steps: Sequence[Step], task: Task) -> None:
    """Make sure that each step can be done to a model of a task.

    Raises:
        InvalidRequest: One cannot; names it, and says what can.
    """
    for number, step in enumerate(steps, 1):
        if refusal := _refused_by(step, task):
            raise InvalidRequest(f"step {number} of the recipe ({step.step}): {refusal}")


def _refused_by(step: Step, task: Task) -> str | None:
    """Why a step cannot be done to a model of a task, where it cannot."""
    language_model = task in (Task.GENERATE, Task.SCORE)
    match step:
        case Export() if task is Task.GENERATE:
            return (
                "a model that generates keeps what it has read from token to token, which no graph of ours does: "
                "register it with task='score' to export it, or leave the step out"
            )
        case Distill() if task is Task.RERANK:
            return "nothing teaches a model that reranks: prune, quantize or export it"
        case Distill(loss="cosine" | "mse") if task is not Task.EMBED:
            return f"loss {step.loss} compares vectors, and the model does {task}: leave it out, which takes kl"
        case Distill(loss="kl") if task is Task.EMBED:
            return "loss kl compares distributions, and the model gives vectors: choose cosine or mse"
        case Distill(hard_weight=float()) if task is Task.EMBED:
            return "hard_weight is the share of labels or of the next token, and a model that embeds has neither"
        case Distill(hard_weight=float(weight)) if weight and not language_model and not step.data.labelled:
            return f"hard_weight is {weight:g}, the share of the loss on labels, and the data has no label"
        case _:
            return None
