"""What the score engine makes of texts."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.texts import sentences
from contracts.params import parse_params
from tests.models import model_spec
from worker.engines.score import ScoreEngine, _perplexity
from worker.outputs import unfit

PARAMS = parse_params("score", {"per_token": True})


@pytest.fixture(scope="module")
def engine(language_model: Path) -> ScoreEngine:
    return ScoreEngine.load(model_spec(engine="score", task="score"), language_model, "cpu")


def test_a_text_of_one_token_has_nothing_to_score(engine: ScoreEngine) -> None:
    prepared = engine.prepare(["a b", "a", "", "a b c"], PARAMS)
    assert {place: error.item_code for place, error in prepared.errors.items()} == {1: "too_short", 2: "invalid_input"}
    assert (prepared.lengths > 0).tolist() == [True, False, False, True]
    outputs: list[Any] = list(engine.run([prepared.rows[0], prepared.rows[3]], PARAMS))
    assert [output["tokens"] for output in outputs] == [1, 2]


def test_tokens_are_told_where_they_are_asked_for(engine: ScoreEngine) -> None:
    rows = engine.prepare(["a text of some words"], PARAMS).rows
    [whole] = engine.run(rows, PARAMS)
    [short] = engine.run(rows, parse_params("score", {}))
    tokens = whole.pop("token_log_likelihoods")
    assert whole == short
    assert len(tokens) == whole["tokens"] == len(rows[0]) - 1
    assert sum(tokens) == pytest.approx(whole["log_likelihood"])
    assert whole["perplexity"] == pytest.approx(math.exp(-sum(tokens) / len(tokens)))


def test_few_logits_are_held_at_a_time(engine: ScoreEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = engine.prepare([text for text in sentences(200)[::20] if len(text) > 20], PARAMS).rows
    at_once = engine._likelihoods(rows)
    words = engine._module.config.vocab_size
    held: list[int] = []
    calls: list[int] = []
    forward = engine._module.forward

    def spied(*arguments: Any, **keywords: Any) -> Any:
        output = forward(*arguments, **keywords)
        held.append(output.logits.numel())
        return output

    monkeypatch.setattr(engine._module, "forward", spied)
    monkeypatch.setattr(engine, "checkpoint", lambda: calls.append(1))
    monkeypatch.setattr(engine, "_logits", 3 * len(rows) * words)
    parts = engine._likelihoods(rows)
    for row, one, other in zip(rows, at_once, parts, strict=True):
        np.testing.assert_allclose(one[: len(row) - 1], other[: len(row) - 1], rtol=1e-5, atol=1e-5)
    assert max(held) == 3 * len(rows) * words
    assert len(calls) == len(held) - 1 >= 3


def test_a_perplexity_beyond_all_numbers_fails_its_item(engine: ScoreEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _perplexity(-800.0) == math.inf
    rows = engine.prepare(["a b c", "d e f"], PARAMS).rows
    likely = engine._likelihoods(rows)
    likely[1] = -800
    monkeypatch.setattr(engine, "_likelihoods", lambda _: likely)
    bad = unfit(engine.run(rows, parse_params("score", {})))
    assert {place: error.item_code for place, error in bad.items()} == {1: "non_finite"}


def test_what_comes_before_a_text_is_given(engine: ScoreEngine) -> None:
    """A token that a tokenizer puts before every text (BOS) is the first, which is not scored."""
    row = engine.prepare(["a b c d"], PARAMS).rows[0]
    with_bos = np.concatenate([[1], row]).astype(np.int32)
    [bare], [begun] = engine.run([row], PARAMS), engine.run([with_bos], PARAMS)
    assert (bare["tokens"], begun["tokens"]) == (len(row) - 1, len(row))
    with torch.inference_mode():
        logits = engine._module(torch.tensor([with_bos.tolist()])).logits[0].log_softmax(-1)
    expected = [logits[place, token].item() for place, token in enumerate(row.tolist())]
    assert begun["token_log_likelihoods"] == pytest.approx(expected, rel=1e-5)
