import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from contracts.errors import ItemFailed
from contracts.names import Task
from tests.engines import RowEngine, as_vectors
from worker.engines.base import Output
from worker.forward import Forward, forward
from worker.outputs import OutputForm


def as_json(rows: list[int]) -> Output:
    return [{"row": row, "score": 0.5} for row in rows]


def failing(on: set[int], then: Callable[[list[int]], Output], error: Exception) -> Callable[[list[int]], Output]:
    def compute(rows: list[int]) -> Output:
        if on & set(rows):
            raise error
        return then(rows)

    return compute


def run(
    engine: RowEngine, rows: Sequence[int], *, task: Task = Task.EMBED, precision: str = "float32", **options: Any
) -> Forward:
    params = {"precision": precision}
    return forward(engine, rows, params, OutputForm(task, params, "tiny"), **options)


TASKS = {as_vectors: Task.EMBED, as_json: Task.CLASSIFY}


@pytest.mark.parametrize("as_output", [as_vectors, as_json])
def test_a_pass_that_succeeds_is_one_pass(as_output: Callable[[list[int]], Output]) -> None:
    engine = RowEngine(as_output)
    result = run(engine, [10, 11, 12], task=TASKS[as_output])
    assert engine.passes == [[10, 11, 12]]
    assert (result.places, result.errors) == ([0, 1, 2], {})
    assert np.array_equal(result.outputs, as_output([10, 11, 12]))


@pytest.mark.parametrize("as_output", [as_vectors, as_json])
@pytest.mark.parametrize("bad", [{0}, {6}, {3}, {0, 6}, {2, 3}, {0, 1, 2, 4, 5, 6}])
def test_failures_are_pinned_on_the_rows_that_cause_them(
    bad: set[int], as_output: Callable[[list[int]], Output]
) -> None:
    engine = RowEngine(failing(bad, as_output, RuntimeError("it fell\nover")))
    result = run(engine, range(7), task=TASKS[as_output])
    good = [row for row in range(7) if row not in bad]
    assert result.places == good
    assert np.array_equal(result.outputs, as_output(good))
    assert set(result.errors) == bad
    for error in result.errors.values():
        assert (error.item_code, error.message) == ("engine_error", "RuntimeError: it fell")


def test_one_bad_row_in_many_costs_few_passes() -> None:
    engine = RowEngine(failing({700}, as_vectors, RuntimeError()))
    result = run(engine, range(1024))
    assert len(engine.passes) == 21
    assert set(result.errors) == {700}
    assert result.errors[700].message == "RuntimeError: no message"


def test_when_every_row_fails_there_is_no_output() -> None:
    result = run(RowEngine(failing({0, 1, 2}, as_json, ValueError("no"))), range(3))
    assert (result.places, result.outputs, set(result.errors)) == ([], None, {0, 1, 2})


def test_an_engine_may_say_what_is_wrong_with_an_input() -> None:
    result = run(RowEngine(failing({1}, as_vectors, ItemFailed("too_hot", "42 °C"))), range(2))
    assert (result.errors[1].item_code, result.errors[1].message) == ("too_hot", "42 °C")


@pytest.mark.parametrize(
    ("wrong", "task", "said"),
    [
        (lambda rows: as_json(rows)[:-1], Task.CLASSIFY, "engine 'tiny' gave 2 outputs for 3 inputs"),
        (lambda rows: as_vectors([*rows, 0]), Task.EMBED, "engine 'tiny' gave 4 outputs for 3 inputs"),
        (as_json, Task.EMBED, "a list, not an array of float32"),
        (as_vectors, Task.CLASSIFY, "a ndarray, not a list of JSON values"),
        (lambda rows: None, Task.EMBED, "a NoneType, not an array"),
        (lambda rows: as_vectors(rows).astype(np.float64), Task.EMBED, "2 axes of float64, not 2 of float32"),
        (lambda rows: np.ones(len(rows), np.float32), Task.EMBED, "1 axes of float32"),
        (lambda rows: np.ones((len(rows), 0), np.float32), Task.EMBED, "vectors of 0 numbers"),
        (lambda rows: np.ones((len(rows), 16_001), np.float32), Task.EMBED, "vectors of 16001 numbers"),
    ],
)
def test_outputs_of_another_form_are_never_passed_on(wrong: Any, task: Task, said: str) -> None:
    result = run(RowEngine(wrong), range(3), task=task)
    assert (result.places, result.outputs, set(result.errors)) == ([], None, {0, 1, 2})
    assert {error.item_code for error in result.errors.values()} == {"invalid_output"}
    assert said in result.errors[0].message


def test_vectors_of_another_width_fail_alone_now_and_later() -> None:
    form = OutputForm(Task.EMBED, {}, "tiny")

    def compute(rows: list[int]) -> Output:
        return np.ones((len(rows), 3 if 5 in rows else 2), np.float32)

    engine = RowEngine(compute)
    assert forward(engine, [1, 2], {}, form).errors == {}
    result = forward(engine, [3, 4, 5, 6], {}, form)
    assert result.places == [0, 1, 3]
    assert result.errors[2].item_code == "invalid_output"
    assert result.errors[2].message.endswith("vectors of 3 numbers, and of 2 before")


def test_a_wrong_number_of_outputs_is_everybodys(caplog: pytest.LogCaptureFixture) -> None:
    """Which of the others is whose, nobody knows."""
    engine = RowEngine(lambda rows: as_vectors([row for row in rows if row != 2]))
    result = run(engine, range(4))
    assert engine.passes == [[0, 1, 2, 3]]
    assert (result.places, result.outputs, set(result.errors)) == ([], None, {0, 1, 2, 3})
    assert caplog.messages == ["engine 'tiny' gave 3 outputs for 4 inputs: nothing of the micro-batch is kept"]


def test_a_wrong_number_of_outputs_takes_back_what_halves_gave() -> None:
    def compute(rows: list[int]) -> Output:
        if 1 in rows and len(rows) > 1:
            raise RuntimeError("of all of them, and of the first half")
        if rows == [1]:
            raise ItemFailed("too_hot", "42 °C")
        return as_vectors(rows if rows == [0] else rows[1:])

    engine = RowEngine(compute)
    result = run(engine, range(4))
    assert engine.passes == [[0, 1, 2, 3], [0, 1], [0], [1], [2, 3]]
    assert (result.places, result.outputs) == ([], None)
    assert {place: error.item_code for place, error in result.errors.items()} == {
        0: "invalid_output",
        1: "too_hot",
        2: "invalid_output",
        3: "invalid_output",
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_vectors_that_are_no_numbers_fail(number: float, dtype: type) -> None:
    def compute(rows: list[int]) -> Output:
        vectors = np.ones((len(rows), 3), dtype)
        for place, row in enumerate(rows):
            if row in (1, 3):
                vectors[place, row - 1] = number
        return vectors

    engine = RowEngine(compute)
    result = run(engine, range(4), precision=np.dtype(dtype).name)
    assert len(engine.passes) == 1
    assert result.places == [0, 2]
    assert np.array_equal(result.outputs, np.ones((2, 3), dtype))
    assert {place: error.item_code for place, error in result.errors.items()} == {1: "non_finite", 3: "non_finite"}


@pytest.mark.parametrize(
    "output", [math.nan, [1.0, math.inf], {"score": -math.inf}, [{"label": "x", "scores": [0.5, math.nan]}]]
)
def test_json_that_holds_no_number_fails(output: Any) -> None:
    engine = RowEngine(lambda rows: [output if row == 0 else [1, None, "NaN"] for row in rows])
    result = run(engine, [0, 1], task=Task.CLASSIFY)
    assert (result.places, result.outputs) == ([1], [[1, None, "NaN"]])
    assert result.errors[0].item_code == "non_finite"


def test_bits_are_always_finite() -> None:
    bits = np.full((2, 2), 255, np.uint8)
    result = run(RowEngine(lambda rows: bits), range(2), precision="ubinary")
    assert result.outputs is bits


def test_failing_and_infinite_rows_in_one_pass() -> None:
    def compute(rows: list[int]) -> Output:
        if 4 in rows:
            raise RuntimeError
        return np.array([[math.nan if row in (0, 7) else row] for row in rows], np.float32)

    result = run(RowEngine(compute), range(8))
    assert result.places == [1, 2, 3, 5, 6]
    assert np.array_equal(result.outputs, [[1], [2], [3], [5], [6]])
    assert {place: error.item_code for place, error in sorted(result.errors.items())} == {
        0: "non_finite",
        4: "engine_error",
        7: "non_finite",
    }


class Full:
    """Memory for so many rows at once, and none for some."""

    def __init__(self, most: int, never: set[int] = frozenset(), error: Exception | None = None) -> None:
        self.most, self.never, self.error = most, never, error or MemoryError("no room")

    def __call__(self, rows: list[int]) -> Output:
        if len(rows) > self.most or self.never & set(rows):
            raise self.error
        return as_vectors(rows)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_pass_that_memory_is_too_small_for_is_computed_in_halves(error: Exception) -> None:
    engine = RowEngine(Full(3, error=error))
    result = run(engine, range(16))
    assert (result.places, result.errors, result.fitting) == (list(range(16)), {}, 2)
    assert np.array_equal(result.outputs, as_vectors(list(range(16))))
    assert engine.freed == sum(len(rows) > 3 for rows in engine.passes)


def test_memory_that_suffices_is_not_spoken_of() -> None:
    engine = RowEngine(failing({2}, as_vectors, RuntimeError("expected scalar type Float")))
    assert run(engine, range(4)).fitting is None
    assert engine.freed == 0


@pytest.mark.parametrize(
    ("most", "never", "fitting"),
    # A row that never fits says nothing of the passes that it was in, and those without it say all there is to say.
    [(32, {5}, None), (32, {0, 31}, None), (4, {5}, 4), (1, {5}, 1), (32, set(range(32)), None), (0, set(), None)],
)
def test_what_does_not_fit_by_itself_fails_alone(most: int, never: set[int], fitting: int | None) -> None:
    result = run(RowEngine(Full(most, never)), range(32))
    failed = never if most else set(range(32))
    assert set(result.errors) == failed
    assert result.places == [place for place in range(32) if place not in failed]
    assert result.fitting == fitting
    for error in result.errors.values():
        assert error.item_code == "out_of_memory"
        assert error.message == "it does not fit into memory by itself: MemoryError: no room"


def test_each_pass_is_announced() -> None:
    engine = RowEngine(failing({3}, as_vectors, RuntimeError()))
    announced: list[int] = []
    run(engine, range(8), begin_pass=lambda: announced.append(len(engine.passes)))
    assert announced == list(range(len(engine.passes)))


def test_what_an_engine_says_is_kept_with_the_item_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = RuntimeError("cannot take 'a secret \0 of \ud800 somebody'" + "x" * 5000)
    with caplog.at_level(logging.DEBUG):
        result = run(RowEngine(failing({1, 2}, as_vectors, error)), range(4))
    assert caplog.messages == ["of 4 inputs in a micro-batch, some fail alone: 2 engine_error (RuntimeError)"]
    assert "secret" not in caplog.text
    message = result.errors[1].message
    assert message.startswith("RuntimeError: cannot take 'a secret \ufffd of ? somebody'")
    assert len(message) == 2000
