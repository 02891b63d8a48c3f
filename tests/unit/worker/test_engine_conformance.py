"""What every engine must do, whatever it computes with: each test runs for each entry of tests/conformance.py.

Each runs on a tiny model, and, marked `verify`, on a real one.
"""

from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, is_dataclass
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks.texts import sentences
from contracts.errors import ItemFailed, ModelLoadFailed
from contracts.names import Task
from contracts.params import parse_params
from tests.conformance import KINDS, ODD, Kind
from tests.models import MINILM, model_spec
from worker.engines.base import Engine, Prepared
from worker.engines.fake import FakeEngine
from worker.forward import forward
from worker.outputs import OutputForm

LONG = "one more word " * 2000
NEIGHBOUR = "word " * 150
CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
GPU_GRAPHS = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
SIZES: dict[str, list[pytest.MarkDecorator]] = {"tiny": [], "real": [pytest.mark.verify]}
TRIED = [
    pytest.param(
        (size, name, quantization, device),
        id="-".join([size, name, quantization, *(["cuda"] if on_gpu else [])]),
        marks=[*marks, *on_gpu],
    )
    for size, marks in SIZES.items()
    for name, kind in KINDS.items()
    for quantization in kind.tolerances
    for device, on_gpu in [("cpu", []), ("cuda:0", CUDA)]
    if size == "tiny" or kind.engine is not FakeEngine
    if device == "cpu" or (kind.engine is not FakeEngine and quantization in ("none", "nf4"))
    if device == "cpu" or kind.weights != "model.onnx" or GPU_GRAPHS
]
PLAIN = [
    pytest.param((size, name), id=f"{size}-{name}", marks=marks)
    for size, marks in SIZES.items()
    for name, kind in KINDS.items()
    if "none" in kind.tolerances and (size == "tiny" or kind.engine is not FakeEngine)
]


@dataclass(frozen=True)
class Case:
    kind: Kind
    quantization: str
    engine: Engine
    folder: Path
    tolerance: float

    def params(self, **changes: Any) -> dict[str, Any]:
        return parse_params(Task(self.kind.task), {**self.kind.params, **changes})

    def prepare(self, texts: list[str], **params: Any) -> Prepared:
        return self.engine.prepare([self.kind.payload(text) for text in texts], self.params(**params))

    def run(self, rows: list[Any], **params: Any) -> list[Any]:
        """Outputs as numbers."""
        outputs = self.engine.run(rows, self.params(**params))
        assert len(outputs) == len(rows)
        return [self.kind.numbers(output) for output in outputs]


def folder_of(kind: Kind, size: str, request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(f"real_{kind.folder}" if size == "real" else kind.folder)
    return folder


def load(kind: Kind, folder: Path, quantization: str = "none", device: str = "cpu", **spec: Any) -> Engine:
    source = "fake:" if kind.engine is FakeEngine else "hf:model"
    values = {"engine": kind.task, "task": kind.task, "source": source, "quantization": quantization} | spec
    return kind.engine.load(model_spec(**values), folder, device)


@pytest.fixture(scope="module", params=TRIED)
def case(request: pytest.FixtureRequest) -> Case:
    size, name, quantization, device = request.param
    kind = KINDS[name]
    folder = folder_of(kind, size, request)
    tolerance = {**kind.tolerances, **(kind.tiny if size == "tiny" else {})}[quantization]
    return Case(kind, quantization, load(kind, folder, quantization, device), folder, tolerance)


@pytest.fixture(scope="module", params=PLAIN)
def plain(request: pytest.FixtureRequest) -> Case:
    """As the weights are stored, on the CPU: for what the arithmetic has no bearing on."""
    size, name = request.param
    kind = KINDS[name]
    folder = folder_of(kind, size, request)
    return Case(kind, "none", load(kind, folder), folder, kind.tolerances["none"])


def assert_close(found: list[Any], expected: list[Any], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def apart(one: Any, other: Any, tolerance: float) -> bool:
    return one.shape != other.shape or not np.abs(one - other).max() <= tolerance


def test_each_input_has_its_output_whatever_stands_beside_it(case: Case) -> None:
    number = 75 if case.quantization == "none" else 25
    prepared = case.prepare([*sentences(20 * number)[::20], NEIGHBOUR])
    assert prepared.errors == {}
    rows, long = prepared.rows[:-1], prepared.rows[-1]
    alone = [output for row in rows for output in case.run([row])]
    tipped = []
    for start in range(0, len(rows), 25):
        part = rows[start : start + 25]
        among = case.run([long, *reversed(part)])[:0:-1]
        tipped += [pair for pair in zip(among, alone[start : start + 25], strict=True) if apart(*pair, case.tolerance)]
    assert len(tipped) <= case.kind.tipped.get(case.quantization, 0.0) * number, tipped[:3]
    # The tolerance tells neighbours apart: inputs are not that close.
    differing = [apart(one, other, case.tolerance) for one, other in combinations(alone[:25], 2)]
    assert np.mean(differing) > case.kind.apart.get(case.quantization, 0.98)


def test_lengths_are_what_padding_is_reckoned_in(plain: Case) -> None:
    prepared = plain.prepare(["", "a", "a much longer text than that", LONG], truncate=True)
    assert prepared.lengths.dtype == np.int32
    lengths = prepared.lengths.tolist()
    assert (0 < lengths[0] <= lengths[1]) if plain.kind.empty else (lengths[0] == 0)
    assert 0 < lengths[1] < lengths[2] < lengths[3]


def test_the_empty_text(plain: Case) -> None:
    prepared = plain.prepare(["", "other"])
    if not plain.kind.empty:
        assert [error.item_code for error in prepared.errors.values()] == ["invalid_input"]
        return
    empty, other = plain.run(prepared.rows)
    assert np.isfinite(empty).all()
    assert empty.shape != other.shape or not np.allclose(empty, other, rtol=0, atol=10 * plain.tolerance)


def test_what_is_too_long_is_cut_and_says_so(plain: Case) -> None:
    prepared = plain.prepare(["short", LONG, "short"], truncate=True)
    assert prepared.errors == {}
    assert prepared.truncated.tolist() == [False, True, False]
    assert prepared.lengths[1] == plain.kind.limit
    short, _, same = plain.run(prepared.rows, truncate=True)
    assert_close([short], [same], plain.tolerance)


def test_what_is_too_long_fails_where_it_may_not_be_cut(plain: Case) -> None:
    prepared = plain.prepare(["short", LONG, "short"], truncate=False)
    assert list(prepared.errors) == [1]
    assert prepared.errors[1].item_code == "too_long"
    *_, needed, limit = (int(word) for word in prepared.errors[1].message.split() if word.isdigit())
    assert limit <= plain.kind.limit
    assert needed > 6000
    assert prepared.truncated.tolist() == [False] * 3
    assert prepared.lengths[1] == 0
    plain.run([prepared.rows[0], prepared.rows[2]], truncate=False)


def test_payloads_are_checked_one_by_one(plain: Case) -> None:
    wrong = plain.kind.wrong
    right = plain.kind.payload("text")
    prepared = plain.engine.prepare([right, *wrong, right], plain.params())
    assert len(prepared.rows) == len(prepared.lengths) == len(prepared.truncated) == len(wrong) + 2
    assert list(prepared.errors) == list(range(1, len(wrong) + 1))
    assert {error.item_code for error in prepared.errors.values()} <= {"invalid_input"}
    if wrong:
        assert prepared.errors[len(wrong)].message == plain.kind.message
    assert prepared.lengths[1:-1].tolist() == [0] * len(wrong)
    first, last = plain.run([prepared.rows[0], prepared.rows[-1]])
    assert_close([first], [last], plain.tolerance)


def test_threads_may_prepare_at_once(plain: Case) -> None:
    # Cutting and not cutting in turns: a tokenizer that is set up anew for each call fails here.
    texts = [*sentences(400)[::4], LONG]

    def prepare(i: int) -> Prepared:
        return plain.prepare(texts, truncate=i % 2 == 0)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(prepare, range(16)))
    expected = [prepare(0), prepare(1)]
    for i, prepared in enumerate(found):
        np.testing.assert_array_equal(prepared.lengths, expected[i % 2].lengths)
        assert list(prepared.errors) == list(expected[i % 2].errors)
        assert_same_rows(prepared.rows, expected[i % 2].rows)


def assert_same_rows(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, list | tuple):
        for mine, yours in zip(one, other, strict=True):
            assert_same_rows(mine, yours)
    elif is_dataclass(one):
        assert_same_rows(list(vars(one).values()), list(vars(other).values()))
    else:
        assert one == other


def test_a_pass_that_nobody_waits_for_ends_between_its_steps(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if plain.kind.steps is None:
        pytest.skip("a pass of it has one step")
    prepared = plain.engine.prepare([plain.kind.steps], plain.params())
    for name, value in plain.kind.patches.items():
        monkeypatch.setattr(plain.engine, name, value)
    calls = count(1)
    monkeypatch.setattr(plain.engine, "checkpoint", lambda: next(calls))
    [undisturbed] = plain.run(prepared.rows)
    assert next(calls) > 3

    def cancel() -> None:
        if next(calls) == 3:
            raise CancelledError

    calls = count(1)
    monkeypatch.setattr(plain.engine, "checkpoint", cancel)
    with pytest.raises(CancelledError):
        plain.run(prepared.rows)
    assert next(calls) == 4
    [again] = plain.run(prepared.rows)
    assert_close([again], [undisturbed], plain.tolerance)


def test_what_is_no_number_fails_its_item_alone(plain: Case) -> None:
    params = plain.params()
    with plain.kind.poison(plain.engine):
        prepared = plain.prepare(["horse", ODD, "donkey"])
        found = forward(plain.engine, prepared.rows, params, OutputForm(Task(plain.kind.task), params, "tried"))
    assert found.places == [0, 2]
    assert {place: error.item_code for place, error in found.errors.items()} == {1: "non_finite"}
    after = plain.run(plain.prepare(["horse", ODD, "donkey"]).rows)
    assert found.outputs is not None
    assert_close([plain.kind.numbers(output) for output in found.outputs], after[::2], plain.tolerance)


def test_synthetic_rows_run(case: Case) -> None:
    assert len(case.engine.synthetic(10, 3)) == 3
    case.run(case.engine.synthetic(10, 3))
    case.run(case.engine.synthetic(10**6, 1))


def test_memory_is_known(case: Case) -> None:
    stored = (case.folder / case.kind.weights).stat().st_size
    least, most = (1, 1_000_000_000) if case.kind.engine is FakeEngine else (0.2 * stored, 1.1 * stored)
    assert least <= case.engine.memory_bytes <= most


def test_a_full_memory_is_told_from_other_failures(plain: Case) -> None:
    for allocate in (lambda: torch.empty(2**55, dtype=torch.uint8), lambda: np.empty(2**55, np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as full:
            allocate()
        assert plain.engine.ran_out_of_memory(full.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not plain.engine.ran_out_of_memory(other.value)
    plain.engine.free_memory()


@pytest.mark.parametrize("damage", ["task", "config.json", "tokenizer.json", "weights", "cut"])
def test_a_model_that_cannot_be_loaded_says_why_in_one_line(plain: Case, tmp_path: Path, damage: str) -> None:
    kind, whole = plain.kind, plain.folder
    if kind.engine is FakeEngine and damage != "task":
        pytest.skip("it has no files")
    without = kind.weights if damage == "weights" else damage
    for file in whole.iterdir():
        if file.name != without and (tmp_path / file.name) != tmp_path:
            (tmp_path / file.name).symlink_to(file)
    if damage == "cut":
        weights = tmp_path / kind.weights
        weights.unlink()
        weights.write_bytes((whole / weights.name).read_bytes()[:500_000])
    other = next(task for task in Task if task not in (kind.task, "embed", "classify"))
    with pytest.raises(ModelLoadFailed) as failed:
        load(kind, tmp_path, **({"task": other} if damage == "task" else {}))
    assert "\n" not in str(failed.value)
    assert (f"does not {other}" if damage == "task" else str(tmp_path)) in str(failed.value)


def test_precisions(case: Case) -> None:
    if case.kind.task != "embed":
        pytest.skip("no embeddings")
    rows = case.prepare(sentences(400)[::20]).rows
    full, half, bits = (
        case.engine.run(rows, case.params(precision=precision)) for precision in ("float32", "float16", "ubinary")
    )
    assert isinstance(full, np.ndarray)
    assert isinstance(half, np.ndarray)
    assert isinstance(bits, np.ndarray)
    assert (full.dtype, half.dtype, bits.dtype) == (np.float32, np.float16, np.uint8)
    np.testing.assert_array_equal(half, full.astype(np.float16))
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1), full > 0)


def test_what_is_no_number_stays_visible_in_every_precision(plain: Case) -> None:
    if plain.kind.task != "embed":
        pytest.skip("no embeddings")
    with plain.kind.poison(plain.engine):
        rows = plain.prepare([ODD, "horse"]).rows
        half = plain.engine.run(rows, plain.params(precision="float16"))
        assert np.isnan(half[0]).all()
        assert np.isfinite(half[1]).all()
        # Bits cannot say it, so the pass raises, and what it raises names the cause.
        with pytest.raises(ItemFailed) as failed:
            plain.engine.run(rows, plain.params(precision="ubinary"))
        assert failed.value.item_code == "non_finite"
        assert len(plain.engine.run(rows[1:], plain.params(precision="ubinary"))) == 1


def test_bits_need_whole_bytes() -> None:
    fake = FakeEngine.load(model_spec(source="fake:?dimensions=12"), MINILM, "cpu")
    prepared = fake.prepare(["a", "b"], {"precision": "ubinary"})
    assert [error.item_code for error in prepared.errors.values()] == ["invalid_params"] * 2
    assert "12" in prepared.errors[0].message
    assert fake.prepare(["a"], {"precision": "float16"}).errors == {}
