"""The parameters that each task takes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.errors import InvalidParams, UnknownTask
from contracts.names import Task

MAX_NEW_TOKENS = 32_768


class TaskParams(BaseModel):
    """What all parameter sets have in common: frozen, and nothing unknown is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class EmbedParams(TaskParams):
    """How texts become vectors."""

    precision: Literal["float32", "float16", "ubinary"] = "float32"
    """What is stored: full or half floats, or one bit a dimension (its sign)."""
    truncate: bool = True
    """Cut what is longer than the model's limit; when false, such an item fails."""


class ClassifyParams(TaskParams):
    """How texts become labels."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """The number of labels to return, best first; all of them when not given."""
    truncate: bool = True
    """Cut what is longer than the model's limit; when false, such an item fails."""


class RerankParams(TaskParams):
    """How documents are ranked by a query."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """The number of documents to return, best first; all of them when not given."""
    truncate: bool = True
    """Cut a pair that is longer than the model's limit; when false, such an item fails."""


class GenerateParams(TaskParams):
    """How text is generated: greedily, so that it depends on the prompt alone."""

    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] = 128
    """Tokens at most; the model may end before."""
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=16)] = []
    """The text ends before the first of these strings."""
    truncate: bool = False
    """Cut the beginning of a prompt that leaves no room for `max_new_tokens`; when false, such an item fails."""


class ScoreParams(TaskParams):
    """How the likelihood of a text is told."""

    per_token: bool = False
    """Tell the log-likelihood of each token as well."""
    truncate: bool = True
    """Cut what is longer than the model's limit; when false, such an item fails."""


PARAMS: Mapping[Task, type[TaskParams]] = {
    Task.EMBED: EmbedParams,
    Task.CLASSIFY: ClassifyParams,
    Task.RERANK: RerankParams,
    Task.GENERATE: GenerateParams,
    Task.SCORE: ScoreParams,
}
SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p", "do_sample", "seed", "typical_p", "num_beams"})
"""What people know from elsewhere; a sampled text would depend on its neighbours in the micro-batch."""


def parse_task(task: str) -> Task:
    """The task of that name.

    Raises:
        UnknownTask: There is none, or no engine for it.
    """
    if task not in PARAMS:
        raise UnknownTask(f"task {task!r}: choose one of {', '.join(PARAMS)}")
    return Task(task)


def parse_params(task: Task, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """The task's parameters with every default filled in, as plain JSON values.

    Raises:
        InvalidParams: A parameter is unknown or has a wrong value; the message names each.
    """
    if not isinstance(params, Mapping | None):
        raise InvalidParams(f"parameters of {task}: expected a mapping of names to values, got {type(params).__name__}")
    if task is Task.GENERATE and (sampling := sorted(SAMPLING & set(params or {}))):
        raise InvalidParams(
            f"parameters of generate: {', '.join(sampling)}: only greedy decoding is offered, as a sampled text would "
            "depend on what else is in its micro-batch and could not be shared between jobs; leave it out"
        )
    try:
        return PARAMS[task].model_validate(dict(params or {})).model_dump(mode="json")
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        known = ", ".join(PARAMS[task].model_fields)
        raise InvalidParams(f"parameters of {task}: {problems} (it takes {known})") from None


COMPRESS: Mapping[str, Any] = {"operation": "compress", "steps_version": 1}
"""The parameters of a target that does not compute by its model but makes another of it: a compression's.

The version is raised when a step comes to mean something else, so that nobody is given what it left before.
"""


def compresses(params: Mapping[str, Any]) -> bool:
    """Whether a target's parameters are those of a compression."""
    return bool(params.get("operation") == COMPRESS["operation"])


def extra_tokens(task: Task, params: Mapping[str, Any]) -> int:
    """Tokens that an input costs at most beyond its own: those that are generated."""
    return int(params["max_new_tokens"]) if task is Task.GENERATE and not compresses(params) else 0


MEASURED_LENGTH = 64
"""Tokens of a row that budgets are measured with: about what a sentence or two take; half of them generated, where the
task generates."""


def pass_tokens(budget_tokens: int, task: Task, params: Mapping[str, Any]) -> int:
    """What a pass holds, given a measured budget: where texts are generated, as many rows as when it was measured.

    A step costs by rows, however many steps follow; reckoned by tokens, the longer the texts may become the fewer would
    be generated at once.
    """
    return budget_tokens * (MEASURED_LENGTH + extra_tokens(task, params)) // MEASURED_LENGTH
