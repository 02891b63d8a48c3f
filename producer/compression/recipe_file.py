"""Recipes in YAML files, as the command line takes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from contracts.errors import InvalidInput, InvalidRequest
from contracts.events import SCHEME
from producer.compression.rows import JOB

_URL_MARKS = "://", "::"
"""What fsspec's URLs have, and paths of files have not."""
_OPTIONS = ("name", "evaluate", "accept", "callback_url", "metadata", "expires_in")


@dataclass(frozen=True)
class RecipeFile:
    """What a file says."""

    steps: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `Client.compress`, as far as the file has them."""


def read_recipe(path: Path) -> RecipeFile:
    """Read a list of steps, or `steps` with what else `Client.compress` takes; paths are relative to the file.

    Raises:
        InvalidInput: The file cannot be read, or is no YAML.
        InvalidRequest: It holds something else.
    """
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"the file cannot be read: {error.strerror}", str(path)) from None
    except yaml.YAMLError as error:
        raise InvalidInput(f"not YAML: {' '.join(str(error).split())}", path.name) from None
    if isinstance(document, list):
        return RecipeFile([_beside(path, step) for step in document])
    if not isinstance(document, dict) or not isinstance(document.get("steps"), list):
        raise InvalidRequest(f"{path}: give a list of steps, or a mapping with `steps`")
    options = {name: value for name, value in document.items() if name != "steps"}
    unknown = sorted(str(name) for name in options if name not in _OPTIONS)
    if unknown:
        raise InvalidRequest(f"{path}: there is no {unknown[0]!r}; beside steps it takes {', '.join(_OPTIONS)}")
    if "evaluate" in options:
        options["evaluate"] = _data(path, options["evaluate"])
    return RecipeFile([_beside(path, step) for step in document["steps"]], options)


def _beside(path: Path, step: Any) -> Any:
    """A step, with the path of its data taken from the folder of the recipe."""
    return {**step, "data": _data(path, step["data"])} if isinstance(step, dict) and "data" in step else step


def _data(path: Path, data: Any) -> Any:
    if not isinstance(data, str) or data.startswith((JOB, SCHEME)) or any(mark in data for mark in _URL_MARKS):
        return data
    return path.parent / data
