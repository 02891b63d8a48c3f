"""The reference of recipes, from `contracts.recipes`."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from contracts.recipes import (
    Accept,
    Augmentation,
    Dataset,
    Distill,
    Export,
    PruneMagnitude,
    PruneStructured,
    Quantize,
)
from docs_tools.annotations import in_words
from docs_tools.docstrings import of_attributes
from docs_tools.tables import table

SECTIONS: Mapping[str, type[BaseModel]] = {
    "prune, `magnitude`": PruneMagnitude,
    "prune, `structured`": PruneStructured,
    "quantize": Quantize,
    "distill": Distill,
    "augmentation": Augmentation,
    "export": Export,
    "accept": Accept,
}
_DATA = "a file, a list, or a job whose inputs are taken"


def render() -> str:
    """A section for each step, and for what a step and the gate are made of."""
    return "\n".join(f"### {name}\n\n{_options(kind)}" for name, kind in SECTIONS.items())


def _options(kind: type[BaseModel]) -> str:
    meanings = of_attributes("contracts.recipes", kind.__name__)
    rows = [
        (f"`{name}`", meanings.get(name, ""), _takes(field), _default(field))
        for name, field in kind.model_fields.items()
        if name != "step" and len(getattr(field.annotation, "__args__", (0, 0))) != 1  # what the heading says already
    ]
    said = inspect.cleandoc(kind.__doc__ or "")
    return f"{said}\n\n{table(('option', 'meaning', 'takes', 'default'), rows)}" if rows else f"{said}\n"


def _takes(field: FieldInfo) -> str:
    return _DATA if field.annotation is Dataset else in_words(field)


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default()
    if field.is_required() or value is None or isinstance(value, BaseModel):
        return "required" if field.is_required() else ""
    return f"`{json.dumps(value)}`"
