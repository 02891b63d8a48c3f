"""Canonical JSON: equal values give equal bytes, different ones different bytes, and nothing is altered."""

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contracts.canonical import MAX_INTEGER, MIN_INTEGER, canonicalize, digest
from contracts.errors import InvalidInput

# Text that Postgres can keep: neither NUL nor half of a surrogate pair.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
exact = st.none() | st.booleans() | st.integers(MIN_INTEGER, MAX_INTEGER) | texts
scalars = exact | st.floats(allow_nan=False, allow_infinity=False)  # which every encoder writes in its own way


def _nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5), max_leaves=25
    )


documents = _nested(scalars)


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values that tells 1 from 1.0 and true, and 0.0 from -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b) and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


def shuffled(value: Any, order: Callable[[list[Any]], list[Any]]) -> Any:
    """The same value with the keys of each object in another order, and tuples for lists."""
    if isinstance(value, dict):
        return {key: shuffled(item, order) for key, item in order(list(value.items()))}
    if isinstance(value, list):
        return tuple(shuffled(item, order) for item in value)
    return value


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[Any, Any]:
    """Two values, often equal, often all but equal."""
    first = draw(documents)
    kind = draw(st.sampled_from(["itself", "one leaf differs", "another"]))
    if kind == "another":
        return first, draw(documents)
    return first, first if kind == "itself" else _with_one_leaf(first, draw(scalars), draw)


def _with_one_leaf(value: Any, leaf: Any, draw: st.DrawFn) -> Any:
    if isinstance(value, list) and value:
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _with_one_leaf(value[place], leaf, draw), *value[place + 1 :]]
    if isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: _with_one_leaf(value[key], leaf, draw)}
    return leaf


@given(neighbours())
def test_equal_values_and_only_they_give_equal_bytes(pair: tuple[Any, Any]) -> None:
    first, second = pair
    equal = same(first, second)
    assert (canonicalize(first) == canonicalize(second)) is equal
    assert (digest(canonicalize(first)) == digest(canonicalize(second))) is equal


@given(documents)
def test_what_is_read_back_is_what_was_given(value: Any) -> None:
    data = canonicalize(value)
    # Read by another parser than the one that goes with the encoder.
    assert same(json.loads(data), value)
    assert canonicalize(json.loads(data)) == data


@given(documents, st.randoms(use_true_random=False))
def test_the_order_of_keys_is_nothing(value: Any, rng: Any) -> None:
    assert canonicalize(shuffled(value, lambda pairs: rng.sample(pairs, len(pairs)))) == canonicalize(value)


@given(_nested(exact))
def test_keys_stand_in_order_and_nothing_is_padded(value: Any) -> None:
    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key.encode() for key, _ in pairs]
        assert keys == sorted(keys)
        return dict(pairs)

    data = canonicalize(value)
    whole = json.loads(data, object_pairs_hook=check)
    assert data == json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()


class _Text(str):
    pass


refused: st.SearchStrategy[Any] = (
    st.sampled_from([math.nan, math.inf, -math.inf, b"", bytearray(), Decimal(1), _Text("x"), UUID(int=0), object()])
    | st.sampled_from(
        [datetime(2020, 1, 1, tzinfo=UTC), {1}, frozenset(), 1j, OrderedDict(a=1), {1: "a"}, {None: 1}, Ellipsis]
    )
    | st.integers(min_value=MAX_INTEGER + 1)
    | st.integers(max_value=MIN_INTEGER - 1)
    | st.tuples(texts, st.sampled_from(["\0", "\ud800", "\udfff"]), texts).map("".join)
    | st.sampled_from(["\0", "\ud800"]).map(lambda key: {key: 1})
)


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[Any, str]:
    """A value with one leaf that is no JSON, and the path to it."""
    value, path = draw(refused), "$"
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            before = draw(st.lists(scalars, max_size=3))
            value, path = [*before, value, *draw(st.lists(scalars, max_size=2))], f"$[{len(before)}]" + path[1:]
        else:
            key = draw(st.from_regex(r"\A[a-z_]{1,5}\Z"))
            value, path = {"A": 1, key: value}, f"$.{key}" + path[1:]
    return value, path


@given(spoiled())
@example((math.inf, "$"))
@example((math.nan, "$"))
@example((OrderedDict(a=1), "$"))
@example((MAX_INTEGER + 1, "$"))
@example(({"a": ["\0"]}, "$.a[0]"))
@example(([{"\ud800": 1}], "$[0]"))
def test_what_is_no_json_is_refused_by_its_place(case: tuple[Any, str]) -> None:
    value, path = case
    with pytest.raises(InvalidInput) as caught:
        canonicalize(value)
    assert caught.value.reason.startswith(path)
    assert not isinstance(caught.value.__context__, AssertionError)
    caught.value.reason.encode()  # a message that can be printed and stored
