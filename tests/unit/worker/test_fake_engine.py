import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import ModelLoadFailed, ModelRefused
from contracts.fake import FakeSource, parse_fake
from tests.models import model_spec
from worker.engines.fake import FakeEngine


def engine(source: str = "fake:", task: str = "embed") -> FakeEngine:
    return FakeEngine.load(model_spec(source=source, task=task), Path(), "cpu")


def compute(fake: FakeEngine, payloads: list[Any], **params: Any) -> Any:
    return fake.run(fake.prepare(payloads, params).rows, params)


def test_the_source_is_parsed() -> None:
    assert parse_fake("fake:") == FakeSource()
    assert parse_fake("fake:?dimensions=8&delay=0.5&fail=a%20b") == FakeSource(dimensions=8, delay=0.5, fail="a b")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("fake:?dimension=8", "dimension: Extra inputs are not permitted .*takes dimensions, limit, memory"),
        ("fake:?dimensions=many", "dimensions: .*valid integer"),
        ("fake:?delay=-1", "delay: "),
        ("fake:?delay=inf", "delay: "),
        ("fake:?fail=", "fail: "),
        ("fake:?fail", "bad query field"),
        ("fake:///?delay=1", "write fake:"),
        ("hf:model", "write fake:"),
    ],
)
def test_a_source_that_is_not_understood_is_refused(source: str, said: str) -> None:
    with pytest.raises(ModelRefused, match=said):
        parse_fake(source)


def test_vectors_depend_on_the_payload_alone() -> None:
    # Written down, because a change of these would make stored results untrue.
    [vector] = compute(engine("fake:?dimensions=4"), ["hello"])
    np.testing.assert_allclose(vector, [0.746517, 0.004037, -0.6078, -0.270694], atol=1e-6)
    payloads = ["a", "b", "1", 1, None, {"x": 1, "y": [True]}, "ü", ""]
    vectors = compute(engine(), payloads)
    assert vectors.shape == (8, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert len(np.unique(vectors, axis=0)) == 7  # "1" and 1 are written alike
    np.testing.assert_array_equal(compute(engine(), payloads[::-1]), vectors[::-1])
    np.testing.assert_array_equal(compute(engine(), [{"y": [True], "x": 1}]), vectors[5:6])


def test_labels_are_best_first_and_cut_to_top_k() -> None:
    labels = compute(engine(task="classify"), ["a", "b", "c"])
    for scores in labels:
        assert {entry["label"] for entry in scores} == {"negative", "neutral", "positive"}
        assert sum(entry["score"] for entry in scores) == pytest.approx(1)
        assert sorted(scores, key=lambda entry: -entry["score"]) == scores
    assert compute(engine(task="classify"), ["a", "b", "c"], top_k=1) == [scores[:1] for scores in labels]


def test_a_marked_input_poisons_its_pass_and_no_other() -> None:
    fake = engine("fake:?fail=poison")
    rows = fake.prepare(["good", "some poison here", {"deep": ["poison"]}], {}).rows
    for poisoned in (rows, rows[1:2], rows[2:]):
        with pytest.raises(RuntimeError, match="poison"):
            fake.run(poisoned, {})
    np.testing.assert_array_equal(fake.run(rows[:1], {}), compute(engine(), ["good"]))


def test_a_marked_input_gives_what_is_no_number() -> None:
    vectors = compute(engine("fake:?nan=odd"), ["odd", "even"])
    assert np.isnan(vectors[0]).all()
    assert np.isfinite(vectors[1]).all()
    labels = compute(engine("fake:?nan=odd", "classify"), ["odd", "even"])
    assert np.isnan(labels[0][0]["score"])
    assert np.isfinite(labels[1][0]["score"])


def test_delays_are_kept() -> None:
    began = time.perf_counter()
    fake = engine("fake:?load_delay=0.05&delay=0.05&item_delay=0.02")
    loaded = time.perf_counter()
    compute(fake, ["a", "b", "c"])
    assert loaded - began >= 0.05
    assert time.perf_counter() - loaded >= 0.11


def test_other_tasks_are_refused() -> None:
    with pytest.raises(ModelLoadFailed, match="generate"):
        engine(task="generate")


def test_it_costs_next_to_nothing() -> None:
    texts = [f"{i:08d} {'x' * 191}" for i in range(20_000)]
    fake = engine("fake:?fail=never")
    began = time.process_time()
    rows = fake.prepare(texts, {}).rows
    vectors = [fake.run(rows[start : start + 64], {}) for start in range(0, len(rows), 64)]
    # A tenth of 200,000 inputs a second, with room for a machine that is busy.
    assert time.process_time() - began < 0.4
    assert len(np.unique(np.concatenate(vectors)[:, :4], axis=0)) == len(texts)
