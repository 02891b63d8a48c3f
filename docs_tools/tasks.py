"""The reference of tasks, from `contracts.params`."""

import json

from pydantic.fields import FieldInfo

from contracts.params import PARAMS
from docs_tools.annotations import in_words
from docs_tools.docstrings import of_attributes
from docs_tools.tables import table


def render() -> str:
    """The parameters of each task: one section each."""
    return "\n".join(f"### {task}\n\n{_parameters(task)}" for task in PARAMS)


def _parameters(task: str) -> str:
    kind = next(kind for name, kind in PARAMS.items() if name == task)
    meanings = of_attributes("contracts.params", kind.__name__)
    rows = [
        (f"`{name}`", meanings[name], in_words(field), _default(field)) for name, field in kind.model_fields.items()
    ]
    return f"{(kind.__doc__ or '').strip()}\n\n{table(('parameter', 'meaning', 'takes', 'default'), rows)}"


def _default(field: FieldInfo) -> str:
    value = field.get_default()
    return "" if value is None else f"`{json.dumps(value)}`"
