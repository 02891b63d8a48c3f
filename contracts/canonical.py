"""Canonical JSON of an input and its digest: equal values give equal bytes, and nothing is altered on the way.

The encoder is orjson with sorted keys. Change the encoder or what it is told, and `CANONICAL_VERSION` must rise:
it is part of every target's fingerprint.
"""

import hashlib
import re
from math import isfinite
from typing import Any

import orjson

from contracts.errors import InvalidInput

CANONICAL_VERSION = 1
MAX_ITEM_BYTES = 16 * 1024 * 1024
"""The most that one input can take, encoded."""
MAX_INPUT_BYTES = 1024 * 1024
"""The most that it may take, unless the setting of that name says otherwise."""
MAX_DEPTH = 128
"""Arrays and objects inside one another; the encoder itself ends at 254."""
MIN_INTEGER = -(2**63)
MAX_INTEGER = 2**64 - 1

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def canonicalize(value: Any) -> bytes:
    """The one encoding of a JSON value: UTF-8, sorted keys, no white space.

    Taken are None, bool, int, float, str, list, dict with str keys, and tuple, which is an array like a list;
    exactly these types, as a subclass would come back as something else. `1`, `1.0` and `true` stay distinct.

    Raises:
        InvalidInput: The value is no such JSON, holds what Postgres cannot keep, or is too large; the reason
            begins with the JSON path of the place (`$.scores[2]`).
    """
    try:
        _check(value, 0)
    except _Refused as refused:
        raise InvalidInput(f"${''.join(reversed(refused.path))}: {refused.reason}") from None
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    if len(data) > MAX_ITEM_BYTES:
        raise InvalidInput(f"$: {_too_large(len(data))}")
    return data


def digest(data: bytes) -> bytes:
    """SHA-256 of canonical JSON: the 32 bytes by which an input is found."""
    return hashlib.sha256(data).digest()


class _Refused(Exception):
    """What is wrong, and the steps of the path to it, the innermost first: it gathers them on its way out."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path: list[str] = []


def _check(value: Any, depth: int) -> int:
    """The least number of bytes that the encoding takes; what is far too large is refused before it is encoded."""
    kind = type(value)
    if kind is str:
        return _check_text(value)
    if kind is bool or value is None:
        return 4
    if kind is int:
        if not MIN_INTEGER <= value <= MAX_INTEGER:
            raise _Refused("an integer beyond 64 bits; give it as a string")
        return 1
    if kind is float:
        if not isfinite(value):
            raise _Refused(f"{'NaN' if value != value else 'an infinity'} is not JSON; leave it out or give null")
        return 1
    if kind is not dict and kind is not list and kind is not tuple:
        raise _Refused(
            f"a value of type {kind.__module__}.{kind.__qualname__} is not plain JSON; "
            "convert it to str, int, float, bool, None, list or dict"
        )
    if depth == MAX_DEPTH:
        raise _Refused(f"nested deeper than {MAX_DEPTH} levels, or a container that holds itself")
    return _check_object(value, depth + 1) if kind is dict else _check_array(value, depth + 1)


def _check_object(value: dict[Any, Any], depth: int) -> int:
    size = 2
    key: Any = None
    try:
        for key, item in value.items():
            if type(key) is not str:
                raise _Refused(f"a key of type {type(key).__name__}; keys of JSON are strings")
            size += _check_text(key) + _check(item, depth)
            if size > MAX_ITEM_BYTES:
                raise _Refused(_too_large(size))
    except _Refused as refused:
        refused.path.append(f".{key}" if type(key) is str and _PLAIN_KEY.fullmatch(key) else f"[{key!a:.80}]")
        raise
    return size


def _check_array(value: list[Any] | tuple[Any, ...], depth: int) -> int:
    size = 2
    index = 0
    try:
        for index, item in enumerate(value):  # noqa: B007 - the path names it
            size += _check(item, depth)
            if size > MAX_ITEM_BYTES:
                raise _Refused(_too_large(size))
    except _Refused as refused:
        refused.path.append(f"[{index}]")
        raise
    return size


def _check_text(text: str) -> int:
    if len(text) > MAX_ITEM_BYTES:
        raise _Refused(_too_large(len(text)))
    if "\0" in text:
        raise _Refused("a NUL character (U+0000), which Postgres cannot hold; remove it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _Refused(
                f"a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, "
                "which is no text; decode the source as what it is"
            ) from None
    return len(text)


def _too_large(size: int) -> str:
    return f"at least {size:,} bytes, and an item may take {MAX_ITEM_BYTES:,}; split it"
