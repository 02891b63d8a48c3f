"""What every engine must do, whatever it computes with."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.texts import sentences
from contracts.errors import ItemFailed
from tests.models import MINILM, model_spec
from worker.engines.base import Engine, Prepared
from worker.engines.embed import EmbedEngine
from worker.engines.fake import FakeEngine

LONG = "one more word " * 2000
NEIGHBOUR = "word " * 150
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@dataclass(frozen=True)
class Case:
    engine: Engine
    limit: int
    tolerance: float
    """The most that a number of a unit vector may change with the neighbours in a micro-batch."""
    texts: list[str]
    any_json: bool


CASES = {
    # How long an arithmetic's sums are shows in its tolerance; LLM.int8 also picks outliers by micro-batch.
    "fake": ("none", "cpu", 0.0, 200),
    "none": ("none", "cpu", 1e-5, 200),
    "bf16": ("bf16", "cpu", 0.01, 30),
    "nf4": ("nf4", "cpu", 0.01, 30),
    "int8": ("int8", "cpu", 0.03, 30),
    "none-cuda": ("none", "cuda:0", 1e-5, 200),
    "nf4-cuda": ("nf4", "cuda:0", 0.01, 30),
}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=gpu) if "cuda" in name else name for name in CASES])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    quantization, device, tolerance, count = CASES[request.param]
    texts = sentences(20 * count)[::20]
    if request.param == "fake":
        yield Case(FakeEngine.load(model_spec(), MINILM, device), 512, tolerance, texts, True)
    else:
        spec = model_spec(engine="embed", source="hf:minilm", quantization=quantization)
        yield Case(EmbedEngine.load(spec, MINILM, device), 256, tolerance, texts, False)


def compute(case: Case, payloads: list[Any], **params: Any) -> Any:
    prepared = case.engine.prepare(payloads, params)
    assert prepared.errors == {}
    return case.engine.run(prepared.rows, params)


def test_each_input_has_its_output_whatever_stands_beside_it(case: Case) -> None:
    prepared = case.engine.prepare([*case.texts, NEIGHBOUR], {})
    rows, long = prepared.rows[:-1], prepared.rows[-1]
    alone = np.concatenate([case.engine.run([row], {}) for row in rows])
    assert alone.shape == (len(case.texts), 384)
    assert alone.dtype == np.float32
    for start in range(0, len(rows), 25):
        part = rows[start : start + 25]
        outputs = case.engine.run([long, *reversed(part)], {})
        assert len(outputs) == len(part) + 1
        among: NDArray[np.float32] = outputs[:0:-1]
        np.testing.assert_allclose(among, alone[start : start + 25], rtol=0, atol=case.tolerance)
    # The tolerance tells neighbours apart: no two texts are that close.
    distinct = alone[:20] @ alone[:20].T - np.eye(20)
    assert distinct.max() < 1 - 384 * case.tolerance**2 / 2


def test_lengths_are_what_padding_is_reckoned_in(case: Case) -> None:
    prepared = case.engine.prepare(["", "a", "a much longer text than that", LONG], {})
    assert prepared.lengths.dtype == np.int32
    assert 0 < prepared.lengths[0] <= prepared.lengths[1] < prepared.lengths[2] < prepared.lengths[3]


def test_the_empty_text_is_an_input(case: Case) -> None:
    empty, other = compute(case, ["", "other"])
    assert np.linalg.norm(empty) == pytest.approx(1, abs=1e-3)
    assert not np.allclose(empty, other, atol=0.1)


def test_what_is_too_long_is_cut_and_says_so(case: Case) -> None:
    prepared = case.engine.prepare(["short", LONG, "short"], {"truncate": True})
    assert prepared.errors == {}
    assert prepared.truncated.tolist() == [False, True, False]
    assert prepared.lengths[1] == case.limit


def test_what_is_too_long_fails_where_it_may_not_be_cut(case: Case) -> None:
    prepared = case.engine.prepare(["short", LONG, "short"], {"truncate": False})
    assert list(prepared.errors) == [1]
    assert prepared.errors[1].item_code == "too_long"
    needed, limit = (int(word) for word in prepared.errors[1].message.split() if word.isdigit())
    assert limit == case.limit
    assert needed > 6000
    assert prepared.truncated.tolist() == [False] * 3
    assert prepared.lengths[1] == 0
    assert len(case.engine.run([prepared.rows[0], prepared.rows[2]], {"truncate": False})) == 2


def test_payloads_are_checked_one_by_one(case: Case) -> None:
    payloads: list[Any] = ["text", 1, None, True, ["text"], {"text": "text"}, "text"]
    prepared = case.engine.prepare(payloads, {})
    assert len(prepared.rows) == len(prepared.lengths) == len(prepared.truncated) == len(payloads)
    if case.any_json:
        assert prepared.errors == {}
    else:
        assert list(prepared.errors) == [1, 2, 3, 4, 5]
        assert {error.item_code for error in prepared.errors.values()} == {"invalid_input"}
        assert prepared.errors[5].message == "a text was expected, not an object"
        assert prepared.lengths[1:6].tolist() == [0] * 5
    outputs = case.engine.run([prepared.rows[0], prepared.rows[6]], {})
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=case.tolerance)


def test_precisions(case: Case) -> None:
    texts = case.texts[:20]
    full = compute(case, texts)
    half = compute(case, texts, precision="float16")
    bits = compute(case, texts, precision="ubinary")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, full.astype(np.float16))
    assert bits.dtype == np.uint8
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1), full > 0)


def test_threads_may_prepare_at_once(case: Case) -> None:
    # Cutting and not cutting in turns: a tokenizer that is set up anew for each call fails here.
    def prepare(i: int) -> Prepared:
        return case.engine.prepare([*case.texts, LONG], {"truncate": i % 2 == 0})

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(prepare, range(32)))
    expected = [prepare(0), prepare(1)]
    for i, prepared in enumerate(found):
        np.testing.assert_array_equal(prepared.lengths, expected[i % 2].lengths)
        assert list(prepared.errors) == list(expected[i % 2].errors)
        for row, same in zip(prepared.rows, expected[i % 2].rows, strict=True):
            np.testing.assert_array_equal(row, same)


def test_synthetic_rows_run(case: Case) -> None:
    assert len(case.engine.synthetic(10, 3)) == 3
    assert len(case.engine.run(case.engine.synthetic(10, 3), {})) == 3
    assert len(case.engine.run(case.engine.synthetic(10**6, 1), {})) == 1


def test_memory_is_known(case: Case) -> None:
    assert 1_000_000 <= case.engine.memory_bytes <= 100_000_000


def test_a_full_memory_is_told_from_other_failures(case: Case) -> None:
    for allocate in (lambda: torch.empty(2**55, dtype=torch.uint8), lambda: np.empty(2**55, np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as full:
            allocate()
        assert case.engine.ran_out_of_memory(full.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not case.engine.ran_out_of_memory(other.value)
    case.engine.free_memory()


def test_what_is_no_number_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeEngine.load(model_spec(source="fake:?nan=odd"), MINILM, "cpu")
    embed = EmbedEngine.load(model_spec(engine="embed"), MINILM, "cpu")
    rows = embed.prepare(["odd", "even"], {}).rows
    with torch.no_grad():
        embed._module.get_input_embeddings().weight[int(rows[0][1])] = torch.nan
    for engine, ready in ((fake, fake.prepare(["odd", "even"], {}).rows), (embed, rows)):
        for precision in ("float32", "float16"):
            vectors = engine.run(ready, {"precision": precision})
            assert np.isnan(vectors[0]).all()
            assert np.isfinite(vectors[1]).all()
        # Bits cannot say it, so the pass raises, and what it raises names the cause.
        with pytest.raises(ItemFailed) as failed:
            engine.run(ready, {"precision": "ubinary"})
        assert failed.value.item_code == "non_finite"
        assert len(engine.run(ready[1:], {"precision": "ubinary"})) == 1


def test_bits_need_whole_bytes() -> None:
    fake = FakeEngine.load(model_spec(source="fake:?dimensions=12"), MINILM, "cpu")
    prepared = fake.prepare(["a", "b"], {"precision": "ubinary"})
    assert [error.item_code for error in prepared.errors.values()] == ["invalid_params"] * 2
    assert "12" in prepared.errors[0].message
    assert fake.prepare(["a"], {"precision": "float16"}).errors == {}
