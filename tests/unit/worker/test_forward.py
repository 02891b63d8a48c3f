import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pytest

from contracts.errors import ItemFailed
from worker.engines.base import Engine, Output, Prepared
from worker.forward import forward


class Scripted(Engine):
    """Rows are numbers; what comes out of a pass is the test's to say."""

    def __init__(self, run: Callable[[list[int]], Output]) -> None:
        self._run = run
        self.passes: list[list[int]] = []

    @classmethod
    def load(cls, *_: object) -> Self:
        raise NotImplementedError

    @property
    def memory_bytes(self) -> int:
        return 0

    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        raise NotImplementedError

    def synthetic(self, length: int, count: int) -> list[int]:
        raise NotImplementedError

    def run(self, rows: Sequence[int], params: Mapping[str, Any]) -> Output:
        assert params == {"some": "params"}
        self.passes.append(list(rows))
        return self._run(list(rows))


def as_vectors(rows: list[int]) -> Output:
    return np.array([[row, -row] for row in rows], np.float32)


def as_json(rows: list[int]) -> Output:
    return [{"row": row, "score": 0.5} for row in rows]


def failing(on: set[int], then: Callable[[list[int]], Output], error: Exception) -> Callable[[list[int]], Output]:
    def run(rows: list[int]) -> Output:
        if on & set(rows):
            raise error
        return then(rows)

    return run


PARAMS = {"some": "params"}


@pytest.mark.parametrize("as_output", [as_vectors, as_json])
def test_a_pass_that_succeeds_is_one_pass(as_output: Callable[[list[int]], Output]) -> None:
    engine = Scripted(as_output)
    result = forward(engine, [10, 11, 12], PARAMS)
    assert engine.passes == [[10, 11, 12]]
    assert (result.places, result.errors) == ([0, 1, 2], {})
    assert np.array_equal(result.outputs, as_output([10, 11, 12]))  # type: ignore[arg-type]


@pytest.mark.parametrize("as_output", [as_vectors, as_json])
@pytest.mark.parametrize("bad", [{0}, {6}, {3}, {0, 6}, {2, 3}, {0, 1, 2, 4, 5, 6}])
def test_failures_are_pinned_on_the_rows_that_cause_them(
    bad: set[int], as_output: Callable[[list[int]], Output]
) -> None:
    engine = Scripted(failing(bad, as_output, RuntimeError("it fell\nover")))
    result = forward(engine, range(7), PARAMS)
    good = [row for row in range(7) if row not in bad]
    assert result.places == good
    assert np.array_equal(result.outputs, as_output(good))  # type: ignore[arg-type]
    assert set(result.errors) == bad
    for error in result.errors.values():
        assert (error.item_code, error.message) == ("engine_error", "RuntimeError: it fell")


def test_one_bad_row_in_many_costs_few_passes() -> None:
    engine = Scripted(failing({700}, as_vectors, RuntimeError()))
    result = forward(engine, range(1024), PARAMS)
    assert len(engine.passes) == 21
    assert set(result.errors) == {700}
    assert result.errors[700].message == "RuntimeError: no message"


def test_when_every_row_fails_there_is_no_output() -> None:
    result = forward(Scripted(failing({0, 1, 2}, as_json, ValueError("no"))), range(3), PARAMS)
    assert (result.places, result.outputs, set(result.errors)) == ([], None, {0, 1, 2})


def test_an_engine_may_say_what_is_wrong_with_an_input() -> None:
    result = forward(Scripted(failing({1}, as_json, ItemFailed("too_hot", "42 °C"))), range(2), PARAMS)
    assert (result.errors[1].item_code, result.errors[1].message) == ("too_hot", "42 °C")


@pytest.mark.parametrize("wrong", [lambda rows: as_json(rows)[:-1], lambda rows: as_vectors([*rows, 0])])
def test_a_wrong_number_of_outputs_is_never_passed_on(wrong: Callable[[list[int]], Output]) -> None:
    result = forward(Scripted(wrong), range(3), PARAMS)
    assert (result.places, result.outputs, set(result.errors)) == ([], None, {0, 1, 2})
    assert "outputs for 1 inputs" in result.errors[0].message


def test_a_wrong_number_of_outputs_for_some_is_theirs_alone() -> None:
    def run(rows: list[int]) -> Output:
        return as_vectors([row for row in rows if row != 2])

    result = forward(Scripted(run), range(4), PARAMS)
    assert result.places == [0, 1, 3]
    assert set(result.errors) == {2}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_vectors_that_are_no_numbers_fail(number: float, dtype: type) -> None:
    def run(rows: list[int]) -> Output:
        vectors = np.ones((len(rows), 3), dtype)
        for place, row in enumerate(rows):
            if row in (1, 3):
                vectors[place, row - 1] = number
        return vectors

    engine = Scripted(run)
    result = forward(engine, range(4), PARAMS)
    assert len(engine.passes) == 1
    assert result.places == [0, 2]
    assert np.array_equal(result.outputs, np.ones((2, 3), dtype))  # type: ignore[arg-type]
    assert {place: error.item_code for place, error in result.errors.items()} == {1: "non_finite", 3: "non_finite"}


@pytest.mark.parametrize(
    "output", [math.nan, [1.0, math.inf], {"score": -math.inf}, [{"label": "x", "scores": [0.5, math.nan]}]]
)
def test_json_that_holds_no_number_fails(output: Any) -> None:
    result = forward(Scripted(lambda rows: [output if row == 0 else [1, None, "NaN"] for row in rows]), [0, 1], PARAMS)
    assert (result.places, result.outputs) == ([1], [[1, None, "NaN"]])
    assert result.errors[0].item_code == "non_finite"


def test_bits_are_always_finite() -> None:
    bits = np.full((2, 2), 255, np.uint8)
    result = forward(Scripted(lambda rows: bits), range(2), PARAMS)
    assert result.outputs is bits


def test_failing_and_infinite_rows_in_one_pass() -> None:
    def run(rows: list[int]) -> Output:
        if 4 in rows:
            raise RuntimeError
        return np.array([[math.nan if row in (0, 7) else row] for row in rows], np.float32)

    result = forward(Scripted(run), range(8), PARAMS)
    assert result.places == [1, 2, 3, 5, 6]
    assert np.array_equal(result.outputs, [[1], [2], [3], [5], [6]])  # type: ignore[arg-type]
    assert {place: error.item_code for place, error in sorted(result.errors.items())} == {
        0: "non_finite",
        4: "engine_error",
        7: "non_finite",
    }
