"""Whatever a client can be handed: items and arguments, each with whether it is to be taken."""

import datetime
import decimal
import enum
import math
import random
import uuid
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np

from contracts.canonical import MAX_DEPTH

Pair = namedtuple("Pair", "custom_id input")


class Text(str):
    """A subclass of str, which would come back as something else."""


class Number(int):
    """The same of int."""


class Colour(enum.StrEnum):
    """And an enumeration."""

    RED = "red"


WORDS = ["", " ", "a", "text", "é", "😀", "\x01", "\x7f", "￿", "﻿", "null", '"', "\\", "\r\n", "x" * 300]
SPOILED = ["\0", "a\0b", "\ud800", "\udfff tail", "head \udc00"]
NO_JSON: list[Any] = [
    math.nan, math.inf, -math.inf, np.float32(1), np.int64(1), np.str_("x"), np.array([1.0]), b"bytes", bytearray(b"x"),
    decimal.Decimal("1.5"), uuid.UUID(int=1), datetime.datetime(2020, 1, 1), datetime.date(2020, 1, 1), {1, 2},
    frozenset(), object(), range(3), 1j, Ellipsis, NotImplemented, len, type, Text("x"), Number(1), Colour.RED,
    10**20, -(10**20), 10**5000, [OrderedDict(a=1)], Pair("a", "b"), {1: "x"}, {None: 1}, {"a": 1, 2: 3}, {("a",): 1},
]  # fmt: skip


def _leaf(rng: random.Random) -> Any:
    kind = rng.randrange(6)
    if kind < 3:
        return rng.choice(WORDS)
    if kind == 3:
        return rng.choice([0, 1, -1, 2**64 - 1, -(2**63), rng.getrandbits(60)])
    if kind == 4:
        return rng.choice([0.0, -0.0, 1.5, 1e308, 5e-324, rng.random()])
    return rng.choice([True, False])


def plain(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value."""
    kind = rng.randrange(10)
    if depth > 3 or kind < 6:
        return _leaf(rng)
    if kind < 8:
        return [plain(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(WORDS): plain(rng, depth + 1) for _ in range(rng.randrange(4))}


def _nested(depth: int) -> Any:
    value: Any = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def _itself() -> Any:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


def spoiled(rng: random.Random) -> Any:
    """A value that is no JSON, or none that can be kept."""
    kind = rng.randrange(8)
    if kind < 4:
        value = rng.choice(NO_JSON)
    elif kind < 6:
        value = rng.choice(SPOILED)
    elif kind == 6:
        return _nested(rng.choice([MAX_DEPTH + 1, 300, 3000]))
    else:
        return _itself()
    for _ in range(rng.randrange(3)):
        wrap: list[Callable[[Any], Any]] = [lambda v: [1, v], lambda v: {"k": v}, lambda v: (v, "x"), lambda v: ["", v]]
        value = rng.choice(wrap)(value)
    return value


IDS: list[Any] = ["a", "é", "😀", 1, 0, -5, 2**70, "x" * 512]
NO_IDS: list[Any] = ["", "\0", "\ud800", "x" * 513, 10**5000]


def item(rng: random.Random, number: int) -> tuple[Any, bool]:
    """Something in a list of inputs, and whether it is an item."""
    kind = rng.randrange(12)
    if kind < 4:
        return rng.choice(WORDS), True
    if kind < 6:
        return rng.choice([{rng.choice(WORDS): plain(rng)}, [plain(rng), rng.choice(WORDS)]]), True
    if kind < 8:
        return (f"{rng.choice(IDS)}"[:500] + f" {number}", plain(rng)), True
    if kind == 8:
        return (rng.choice(IDS), spoiled(rng)), False
    if kind == 9:
        return (rng.choice(NO_IDS), plain(rng)), False
    if kind == 10:
        return {"k": spoiled(rng)}, False
    strays: list[Any] = [
        None, 5, 1.5, True, b"x", ["a", b"x"], [object()], (), ("a",), ("a", "b", "c"), (None, "x"), (True, "x"),
        (1.5, "x"), ([], "x"), Pair("a", "b"), object(), {1, 2}, Text("x"), Colour.RED, "\0", "\ud800",
        UserDict({"k": object()}), (Text("\0"), "x"), ("a", None, "b"), ("id", Text("x")),
    ]  # fmt: skip
    return rng.choice(strays), False


ARGUMENTS: dict[str, tuple[list[Any], list[Any]]] = {
    # By name: what is to be taken, and what is not.
    "model": (
        ["fake"],
        ["", "nope", "fake@0", "fake@x", "fake@99999999999", "@", "a@b@c", "\0", "\ud800", 5, None, b"x"],
    ),
    "params": (
        [None, {}, {"precision": "float16"}, {"truncate": False}],
        [{"x": 1}, {"precision": "no"}, {"truncate": "yes"}, {1: 2}, ["ab"], "x", 5,
         {"precision": object()}, {"\ud800": 1}],
    ),
    "priority": (["interactive", "normal", "bulk"], ["", "high", None, 0, [], {}, object(), "\ud800", b"bulk"]),
    "idempotency_key": ([None], ["", "x" * 256, "\0", "\ud800", 5, True, [], {}, b"x", object()]),
    "metadata": (
        [None, {}, {"a": [1, {"b": None}]}, UserDict({"a": 1})],
        [{"a": math.nan}, {1: 2}, {"a": "\0"}, {"a": object()}, {"a": "x" * 9000}, _itself(), ["ab"], "x", 5,
         {"\ud800": 1}],
    ),
    "expires_in": (
        # Of those that are taken some are computed too, and must not expire before.
        [None, 3600, 3600.5, datetime.timedelta(hours=1)],
        [0, -1, math.nan, math.inf, True, "1h", [], object(), datetime.timedelta(0), 10**12, 10**400],
    ),
    "progress_at": ([()], [(50,), [0], [100], [1.5], ["5"], [True], [None], 5, "5", [[]]]),
    "callback_url": ([None], ["", "x", "http://[", "https://nobody.example/", "\0", "\ud800", 5, [], object(), b"x"]),
}  # fmt: skip
NO_INPUTS: list[Any] = ["one text", b"bytes", {"a": 1}, UserDict(), None, 5, object(), []]


def arguments(rng: random.Random) -> tuple[dict[str, Any], str | None]:
    """The arguments of a submission, and the name of the one that is wrong, where one is."""
    given = {name: rng.choice(good) for name, (good, _) in ARGUMENTS.items() if rng.random() < 0.2}
    given["model"] = "fake"
    if rng.random() < 0.8:
        return given, None
    wrong = rng.choice(sorted(ARGUMENTS))
    given[wrong] = rng.choice(ARGUMENTS[wrong][1])
    return given, wrong


def inputs(rng: random.Random) -> tuple[list[Any], list[int]]:
    """Items, and the numbers of those, from 1, that cannot be taken."""
    found = [item(rng, number) for number in range(rng.choice([1, 1, 2, 3, 5]))]
    return [value for value, _ in found], [number for number, (_, good) in enumerate(found, 1) if not good]


LINES = [
    b'"a"', b'{"input": "a"}', b'{"id": 1, "input": {"x": [1, 2]}}', b"", b"  ", b"null", b"NaN", b"[1", b'{"id": "x"}',
    b'{"input": null}', b'{"input": "a", "more": 1}', b'{"input": "\xff"}', b"\xff\xfe", b'"\\ud800"', b'"\\u0000"',
    b"\x00", b'{"id": [], "input": 1}', b"1e999", b"123456789012345678901234567890", b"[" * 300 + b"]" * 300, b'"' * 3,
    b'{"input": 1, "input": 2}', b"9" * 5000, b"\xef\xbb\xbf1", b'{"id": true, "input": "x"}', b"a,b", b'"a",b',
    b'"a\n"b",c', b"x,\xc3", b',,,', b'"x', b"id,input", b"\r", b'{"id": 1' + b"0" * 5000 + b', "input": "x"}',
    b"[" * 100_000,
]  # fmt: skip


def text_file(rng: random.Random) -> bytes:
    """Lines of a .jsonl, .txt or .csv file, whole or not."""
    body = rng.choice([b"\n", b"\r\n"]).join(rng.choice(LINES) for _ in range(rng.randrange(6)))
    if rng.random() < 0.3:
        body = (
            rng.choice(
                [b"input\n", b"id,input\n", b"id,input,x\n", b"input,input\n", b'"inp', b"\xef\xbb\xbfid,input\n"]
            )
            + body
        )
    for _ in range(rng.choice([0, 0, 1, 3])):
        place = rng.randrange(len(body) + 1)
        body = body[:place] + rng.randbytes(rng.randrange(3)) + body[place + rng.randrange(3) :]
    return body


def damaged(rng: random.Random, whole: bytes) -> bytes:
    """A file with some bytes changed, or without its end."""
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 5, 50])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
