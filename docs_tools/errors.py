"""The reference of errors, from the tree of `contracts.errors` and the codes of `contracts.itemcodes`."""

import inspect
from collections.abc import Iterator

from contracts.errors import BatchmillError
from contracts.itemcodes import ENGINE_FAULTS, ItemCode
from docs_tools.docstrings import of_attributes
from docs_tools.tables import table


def tree(error: type[BatchmillError] = BatchmillError, depth: int = 0) -> Iterator[tuple[int, type[BatchmillError]]]:
    """Every error of ours with its depth, each before those that it is the base of."""
    yield depth, error
    for kind in error.__subclasses__():
        if kind.__module__ == "contracts.errors":
            yield from tree(kind, depth + 1)


def render() -> str:
    """A table of all errors, indented as they descend from one another."""
    return table(
        ("error", "meaning", "code", "try again?"),
        [
            (
                f"{'&emsp;' * depth}`{error.__name__}`",
                inspect.cleandoc(error.__doc__ or "").split("\n\n")[0],
                f"`{error.code}`",
                "yes" if error.retryable else "",
            )
            for depth, error in tree()
        ],
    )


def render_items() -> str:
    """A table of why an item has no output."""
    meanings = of_attributes("contracts.itemcodes", "ItemCode")
    return table(
        ("code", "meaning", "whose fault"),
        [
            (f"`{code}`", meanings[code.name], "the engine's" if code in ENGINE_FAULTS else "the input's")
            for code in ItemCode
        ],
    )
