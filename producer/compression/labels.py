"""The labels of a classifier's rows: checked against what its config names, and written as that names them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contracts.errors import InvalidInput


@dataclass(frozen=True)
class Labels:
    """What a classifier tells."""

    names: tuple[str, ...]
    """Of its outputs, in their order."""
    several: bool = False
    """Whether a text may have any number of them."""
    numbers: bool = False
    """Whether the outputs are numbers, and no labels."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Labels":
        """From a model's `config.json`, as the engine reads it."""
        named = config.get("id2label") or {}
        names = tuple(str(named[key]) for key in sorted(named, key=int))
        kind = config.get("problem_type")
        return cls(names, kind == "multi_label_classification", kind == "regression" or (not kind and len(names) == 1))

    def parse(self, label: Any) -> Any:
        """A row's label as the model names it: a text, a list of them, or numbers.

        Raises:
            InvalidInput: The model has no such label.
        """
        if self.numbers:
            return [_number(one) for one in label] if isinstance(label, list) else _number(label)
        if self.several:
            return [self._name(one) for one in (label if isinstance(label, list) else [label])]
        return self._name(label)

    def _name(self, label: Any) -> str:
        if label in self.names:
            return str(label)
        place = int(label) if type(label) is str and label.isascii() and label.isdigit() else label
        if type(place) is int and 0 <= place < len(self.names):
            return self.names[place]
        some = ", ".join(self.names[:10]) + (", …" if len(self.names) > 10 else "")
        raise InvalidInput(f"the label {label!r:.80} is none of the model's: {some}")


def _number(label: Any) -> float:
    try:
        if type(label) in (int, float, str):
            return float(label)
    except ValueError:
        pass
    raise InvalidInput(f"the label {label!r:.80} is no number, which the model gives")
