"""The parameters that each task takes."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from contracts.errors import InvalidParams, UnknownTask
from contracts.names import Task


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

    top_k: int | None = None
    """The number of labels to return, best first; all of them when not given."""
    truncate: bool = True
    """Cut what is longer than the model's limit; when false, such an item fails."""


PARAMS: Mapping[Task, type[TaskParams]] = {Task.EMBED: EmbedParams, Task.CLASSIFY: ClassifyParams}


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
    try:
        return PARAMS[task].model_validate(dict(params or {})).model_dump(mode="json")
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        known = ", ".join(PARAMS[task].model_fields)
        raise InvalidParams(f"parameters of {task}: {problems} (it takes {known})") from None
