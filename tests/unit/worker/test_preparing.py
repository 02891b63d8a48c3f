import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from contracts.errors import ItemFailed
from tests.engines import RowEngine
from worker.engines.base import Prepared
from worker.preparing import prepare


class Preparing(RowEngine):
    """Makes rows as it is told."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self._make = make

    def prepare(self, payloads: Sequence[Any], params: Any) -> Prepared:
        return self._make(payloads)


def doubled(payload: Any) -> list[int]:
    if payload == "hot":
        raise ItemFailed("too_hot", "42 °C")
    return [2 * int(number) for number in payload]


def test_rows_made_one_by_one_fail_one_by_one() -> None:
    prepared = Prepared.each([[1, 2], "hot", ["x"], 5, [3]], doubled)
    assert prepared.rows == [[2, 4], None, None, None, [6]]
    assert prepared.lengths.tolist() == [2, 0, 0, 0, 1]
    assert prepared.truncated.tolist() == [False] * 5
    assert {place: (error.item_code, error.message) for place, error in prepared.errors.items()} == {
        1: ("too_hot", "42 °C"),
        2: ("invalid_input", "ValueError: invalid literal for int() with base 10: 'x'"),
        3: ("invalid_input", "TypeError: 'int' object is not iterable"),
    }


def test_what_fails_otherwise_is_the_engines_fault() -> None:
    def make(payload: int) -> list[int]:
        return [[1], [2]][payload]

    prepared = prepare(Preparing(lambda payloads: Prepared.each(payloads, make)), [0, 7, 1, 8], {})
    assert [row for row in prepared.rows if row is not None] == [[1], [2]]
    assert {place: error.item_code for place, error in prepared.errors.items()} == {
        1: "engine_error",
        3: "engine_error",
    }


@pytest.mark.parametrize(("rows", "lengths", "marks"), [(2, 3, 3), (4, 3, 3), (3, 2, 3), (3, 3, 1)])
def test_a_wrong_number_of_rows_is_everybodys(
    rows: int, lengths: int, marks: int, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Prepared([[1]] * rows, np.ones(lengths, np.int32), np.zeros(marks, np.bool_))
    with caplog.at_level(logging.ERROR):
        prepared = prepare(Preparing(lambda _: wrong), ["a", "b", "c"], {})
    assert [error.item_code for error in prepared.errors.values()] == ["invalid_output"] * 3
    assert f"engine Preparing made {rows} rows of 3 inputs" in prepared.errors[0].message
    assert len(caplog.messages) == 1
