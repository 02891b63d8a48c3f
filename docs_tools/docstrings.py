"""Docstrings of attributes, which no object keeps at runtime."""

from collections.abc import Mapping
from functools import cache

import griffe


@cache
def of_attributes(module: str, name: str) -> Mapping[str, str]:
    """What the source says under each attribute of a class, inherited ones left out."""
    found = griffe.load(module)[name]
    return {name: member.docstring.value for name, member in found.members.items() if member.docstring is not None}
