"""A query with many documents goes through the model in passes that memory holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.texts import sentences
from tests.models import model_spec
from worker.engines.rerank import ALONE, RerankEngine


@pytest.fixture(scope="module")
def engine(reranker: Path) -> RerankEngine:
    return RerankEngine.load(model_spec(engine="rerank", task="rerank"), reranker, "cpu")


class Passes:
    """Scores that are the sums of the tokens, from a model that has memory for so many padded tokens."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.tokens: list[int] = []

    def __call__(self, ids: list[Any], types: list[Any] | None) -> Any:
        assert types is not None
        assert [*map(len, ids)] == [*map(len, types)] == sorted(map(len, ids), reverse=True)
        padded = max(map(len, ids)) * len(ids)
        if padded > self.memory:
            raise MemoryError
        self.tokens.append(padded)
        return np.array([row.sum() for row in ids], np.float32)


def rows_of(engine: RerankEngine, *documents: list[str]) -> list[Any]:
    return engine.prepare([{"query": "close a file", "documents": part} for part in documents], {}).rows


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return sentences(2000)


def ranked_by_sum(row: Any) -> list[int]:
    return np.argsort([-float(ids.sum()) for ids in row.ids], kind="stable").tolist()


@pytest.mark.parametrize("memory", [10**9, 3000])
def test_two_thousand_documents_of_one_query(
    engine: RerankEngine, texts: list[str], memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(memory)
    monkeypatch.setattr(engine, "_scores", passes)
    monkeypatch.setattr(engine, "_alone", ALONE)
    [row] = rows_of(engine, texts)
    [found] = engine.run([row], {})
    assert [entry["index"] for entry in found] == ranked_by_sum(row)
    assert max(passes.tokens) <= min(memory, ALONE)
    assert len(passes.tokens) > sum(map(len, row.ids)) / ALONE
    # What memory holds is remembered.
    assert engine._alone <= min(memory, ALONE)


def test_a_micro_batch_takes_no_more_than_it_was_given(
    engine: RerankEngine, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(10**9)
    monkeypatch.setattr(engine, "_scores", passes)
    rows = rows_of(engine, ["one more word " * 100], ["a"] * 40, texts[:3])
    found = engine.run(rows, {})
    assert [[entry["index"] for entry in output] for output in found] == [ranked_by_sum(row) for row in rows]
    total = sum(len(ids) for row in rows for ids in row.ids)
    assert len(passes.tokens) > 1
    assert max(passes.tokens) <= total


def test_a_full_memory_is_the_callers_to_deal_with_where_rows_can_be_parted(
    engine: RerankEngine, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_scores", Passes(4))
    with pytest.raises(MemoryError):
        engine.run(rows_of(engine, texts[:3], texts[3:6]), {})
    with pytest.raises(MemoryError):  # nor does one pair alone fit
        engine.run(rows_of(engine, texts[:1]), {})
