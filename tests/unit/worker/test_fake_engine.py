import signal
import subprocess
import sys
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
        ("fake:?oom=-1", "oom: "),
        ("fake:?unloadable=perhaps", "unloadable: .*valid boolean"),
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


def test_memory_may_be_small() -> None:
    fake = engine("fake:?oom=2")
    rows = fake.prepare(["a", "b", "c"], {}).rows
    assert len(fake.run(rows[:2], {})) == 2
    with pytest.raises(MemoryError, match="3 inputs, and this fake model has memory for 2"):
        fake.run(rows, {})


def test_an_input_may_not_fit_into_memory() -> None:
    fake = engine("fake:?oom_on=vast&fail=bad&nan=odd")
    rows = fake.prepare(["a vast one", "a bad one", "an odd one", "a vast, bad and odd one", "one"], {}).rows
    for place in (0, 3):
        with pytest.raises(MemoryError, match="vast"):
            fake.run(rows[place : place + 1], {})
    with pytest.raises(RuntimeError, match="bad"):
        fake.run(rows[1:3], {})
    assert np.isnan(fake.run(rows[2:3], {})).all()
    np.testing.assert_array_equal(fake.run(rows[4:], {}), compute(engine(), ["one"]))


COMPUTE = """
import sys
from pathlib import Path
from tests.models import model_spec
from worker.engines.fake import FakeEngine

print("loading", flush=True)
fake = FakeEngine.load(model_spec(source=sys.argv[1]), Path(), "cpu")
for text in ("good", "bad"):
    fake.run(fake.prepare([text, "another"], {}).rows, {})
    print(text, flush=True)
"""


@pytest.mark.parametrize(
    ("source", "said", "ended_by"),
    [
        ("fake:?kill=bad", ["loading", "good"], signal.SIGKILL),
        ("fake:?segfault=bad", ["loading", "good"], signal.SIGSEGV),
        ("fake:?load_kill=1", ["loading"], signal.SIGKILL),
    ],
)
def test_a_process_may_die_of_it(source: str, said: list[str], ended_by: int) -> None:
    command = [sys.executable, "-c", COMPUTE, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout.split(), done.returncode) == (said, -ended_by)


def test_a_pass_may_last_for_ever() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COMPUTE, "fake:?hang=bad"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [next(process.stdout).strip() for _ in range(2)] == ["loading", "good"]
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.kill()


def test_it_may_refuse_to_be_loaded() -> None:
    with pytest.raises(ModelLoadFailed, match="refuses"):
        engine("fake:?unloadable=1")


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
