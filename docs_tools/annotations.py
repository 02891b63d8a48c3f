"""Types of pydantic fields in words."""

import types
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import SecretStr
from pydantic.fields import FieldInfo

_NAMES = {
    str: "text",
    SecretStr: "text, secret",
    bool: "true, false",
    int: "whole number",
    float: "number",
    Path: "path",
    IPv4Network: "network",
    IPv6Network: "network",
}
_LIST = "list; each: "
_BOUNDS = {
    Ge: ("ge", "at least"),
    Gt: ("gt", "more than"),
    Le: ("le", "at most"),
    Lt: ("lt", "less than"),
    MinLen: ("min_length", "length at least"),
    MaxLen: ("max_length", "length at most"),
}
"""Where a limit keeps its value, and how it reads."""


def in_words(field: FieldInfo) -> str:
    """What a field takes: `whole number, at least 2`."""
    kind = _kind(field.annotation)
    return ("; " if kind.startswith(_LIST) else ", ").join([kind, *_bounds(field.metadata)])


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([_kind(arguments[0]), *_bounds(arguments[1:])])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(argument) for argument in arguments if argument is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (tuple, list):
        return f"{_LIST}{_kind(arguments[0])}"
    return _NAMES.get(annotation) or annotation.__name__.lower()


def _bounds(metadata: Sequence[Any]) -> list[str]:
    """Limits in words; a `Field(…)` holds its own."""
    words = []
    for limit in metadata:
        if isinstance(limit, FieldInfo):
            words += _bounds(limit.metadata)
        elif type(limit) in _BOUNDS:
            attribute, reads = _BOUNDS[type(limit)]
            words.append(f"{reads} {_number(getattr(limit, attribute))}")
    return words


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
