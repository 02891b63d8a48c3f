import enum
import hashlib
import json
import math
import random
import sys
import time
import tracemalloc
import uuid
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import orjson
import pytest

from contracts.canonical import MAX_DEPTH, MAX_ITEM_BYTES, canonicalize, digest
from contracts.errors import InvalidInput


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    RED = "red"


class Text(str):
    pass


class Number(int):
    pass


@dataclass
class Record:
    a: int


Pair = namedtuple("Pair", "a b")


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


def any_json(rng: random.Random, depth: int = 0):
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return rng.choice([None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, "", "\\u0000", "\x01\x7f", "\U0010ffff"])
    if kind == 1:
        return rng.randrange(-(2**63), 2**64)
    if kind == 2:
        return rng.choice([rng.random(), rng.uniform(-8e307, 8e307), rng.random() * 1e-310])
    if kind < 6:
        return "".join(
            chr(c) for c in (rng.randrange(1, 0x2FFF) for _ in range(rng.randrange(8))) if not 0xD800 <= c < 0xE000
        )
    if kind < 8:
        return [any_json(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {str(any_json(rng, 4)): any_json(rng, depth + 1) for _ in range(rng.randrange(5))}


def same(a, b) -> bool:
    """Equality that tells 1 from 1.0 and True, and 0.0 from -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


def test_nothing_is_altered():
    rng = random.Random(7)
    for _ in range(5_000):
        value = any_json(rng)
        data = canonicalize(value)
        assert same(orjson.loads(data), value), value
        assert canonicalize(orjson.loads(data)) == data


def test_the_encoding_is_pinned():
    # These bytes decide what is found again in existing databases: a change needs a new CANONICAL_VERSION.
    value = {"b": [1, 1.0, True, None, 1e22, 0.1], "a": 'ü\n"\\/\x7f\u2028', "é": (1, 2), "Z": -0.0}
    assert canonicalize(value) == (
        '{"Z":-0.0,"a":"ü\\n\\"\\\\/\x7f\u2028","b":[1,1.0,true,null,1e+22,0.1],"é":[1,2]}'.encode()
    )
    assert digest(canonicalize("hello")).hex() == "5aa762ae383fbb727af3c7a36d4940a5b8c40a989452d2304fc958ff3f354e7a"


def test_order_of_keys_does_not_matter_and_types_do():
    assert canonicalize({"a": 1, "b": 2}) == canonicalize({"b": 2, "a": 1})
    assert canonicalize((1, 2)) == canonicalize([1, 2])
    assert len({canonicalize(v) for v in (1, 1.0, True, "1", [1], None, 0, False, 0.0, -0.0)}) == 10


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"scores": [1, 2, math.nan]}, r"^\$\.scores\[2\]: NaN"),
        ([math.inf], r"^\$\[0\]: an infinity"),
        (-math.inf, r"^\$: an infinity"),
        ("a\ud800", r"^\$: a lone surrogate \(U\+D800\) at character 1"),
        ({"a": {"\udfff": 1}}, r"^\$\.a\['\\udfff'\]: a lone surrogate"),
        ("a\0b", r"^\$: a NUL"),
        ({"a\0": 1}, r"^\$\['a\\x00'\]: a NUL"),
        ({"a b": "\0"}, r"^\$\['a b'\]: a NUL"),
        ({1: 2}, r"^\$\[1\]: a key of type int"),
        ({None: 2}, "a key of type NoneType"),
        ({Text("a"): 2}, "a key of type Text"),
        (2**64, r"^\$: an integer beyond 64 bits"),
        (-(2**63) - 1, "an integer beyond 64 bits"),
        (b"bytes", "builtins.bytes"),
        ({1, 2}, "builtins.set"),
        (Record(1), "Record"),
        (Pair(1, 2), "Pair"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (datetime.now(UTC), "datetime.datetime"),
        (uuid.uuid4(), "uuid.UUID"),
        (Decimal(1), "decimal.Decimal"),
        (Colour.RED, "Colour"),
        (Word.RED, "Word"),
        (Text("x"), "Text"),
        (Number(1), "Number"),
        (np.float64(1.5), "numpy.float64"),
        (np.arange(3), "numpy.ndarray"),
        (nested(MAX_DEPTH + 1), f"deeper than {MAX_DEPTH}"),
        (nested(100_000), f"deeper than {MAX_DEPTH}"),
    ],
    ids=lambda v: str(v)[:40] if isinstance(v, str) else type(v).__name__,
)
def test_refused(value, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        canonicalize(value)
    assert caught.value.where == ""
    assert caught.value.__cause__ is None


def test_a_container_that_holds_itself():
    loop: list = []
    loop.append(loop)
    with pytest.raises(InvalidInput, match="holds itself"):
        canonicalize(loop)


def test_as_deep_as_allowed_wherever_the_caller_stands():
    def down(frames: int) -> bytes:
        return canonicalize(nested(MAX_DEPTH)) if frames == 0 else down(frames - 1)

    assert down(sys.getrecursionlimit() // 2) == b"[" * MAX_DEPTH + b"]" * MAX_DEPTH


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"a": t}, lambda t: [t] * 10], ids=["str", "dict", "list"])
def test_a_huge_item_is_refused_before_it_is_encoded(wrap):
    value = wrap("x" * (100 * 1024 * 1024))
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(InvalidInput, match=r"104,857,6\d\d bytes.*16,777,216"):
        canonicalize(value)
    assert time.perf_counter() - started < 5  # a thousandth of a second, and generous
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_the_limit_counts_encoded_bytes():
    assert len(canonicalize("x" * (MAX_ITEM_BYTES - 2))) == MAX_ITEM_BYTES
    for value in ("x" * (MAX_ITEM_BYTES - 1), "ü" * (MAX_ITEM_BYTES // 2), [0] * (MAX_ITEM_BYTES // 2)):
        with pytest.raises(InvalidInput, match="16,777,216"):
            canonicalize(value)


def test_fast_enough_to_never_be_the_cost():
    """Beside what Python's own library takes for the same, which is measured in turns with it."""
    texts = [f"{i:>199}x" for i in range(5_000)]

    def ours(text: str) -> None:
        digest(canonicalize(text))

    def plain(text: str) -> None:
        hashlib.sha256(json.dumps(text, ensure_ascii=False).encode()).digest()

    best = {ours: math.inf, plain: math.inf}
    for _ in range(9):
        for function in best:
            started = time.thread_time()
            for text in texts:
                function(text)
            best[function] = min(best[function], time.thread_time() - started)
    assert best[ours] < 3 * best[plain]
