"""Likelihoods are those that `transformers` gives for each text alone, however the weights came and are held."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.texts import stdlib_docstrings
from contracts.errors import ModelLoadFailed
from contracts.params import parse_params
from tests.models import SMOLLM2, model_spec
from worker.engines.score import ScoreEngine

PARAMS = parse_params("score", {"per_token": True})
TEXTS = [
    "日本語のテキスト、句読点。",
    "🙂 SHOUTED",
    *(text for text in stdlib_docstrings(3000)[::150] if len(text) > 9),
]


def load(folder: Path, quantization: str = "none") -> ScoreEngine:
    spec = model_spec(engine="score", task="score", quantization=quantization)
    return ScoreEngine.load(spec, folder, "cpu")


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.verify)])
def folder(request: pytest.FixtureRequest) -> Path:
    """Of a GGUF file: a tiny one, or SmolLM2's."""
    file: Path = SMOLLM2 if request.param == "real" else request.getfixturevalue("speaker")
    return file.parent


@pytest.fixture(scope="module")
def engine(folder: Path) -> ScoreEngine:
    return load(folder)


def perplexities(engine: ScoreEngine, texts: list[str]) -> list[float]:
    """In batches of eight, in order of length."""
    prepared = engine.prepare(texts, PARAMS)
    assert prepared.errors == {}
    found = [0.0] * len(texts)
    for part in np.array_split(np.argsort(prepared.lengths), -(-len(texts) // 8)):
        outputs = engine.run([prepared.rows[i] for i in part], PARAMS)
        for place, output in zip(part, outputs, strict=True):
            found[place] = output["perplexity"]
    return found


def test_perplexities_are_those_of_transformers(engine: ScoreEngine) -> None:
    expected = []
    for text in TEXTS:
        ids = torch.tensor([engine._tokenizer._tokenizer.encode(text).ids])
        with torch.inference_mode():
            logits = engine._module(ids).logits[0, :-1]
        # In float64: torch's cross-entropy in float32 is itself off by up to 1e-5 where there are so many words.
        expected.append(math.exp(torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:]).item()))
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()
        assert expected[-1] == pytest.approx(math.exp(loss), rel=3e-5)
    assert perplexities(engine, TEXTS) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("quantization", "allowed"), [("nf4", 0.7), ("int8", 0.2)])
def test_a_gguf_files_weights_are_held_as_asked_for(
    engine: ScoreEngine, folder: Path, quantization: str, allowed: float
) -> None:
    packed = load(folder, quantization)
    assert packed.memory_bytes < engine.memory_bytes / 2
    texts = [text for text in TEXTS if len(text) < 120][:8]
    exact, found = np.log(perplexities(engine, texts)), np.log(perplexities(packed, texts))
    assert 0 < np.abs(found - exact).mean() < allowed


@pytest.mark.parametrize("share", [0, 1e-4, 0.01, 0.5, 1 - 1e-6])
def test_a_gguf_file_that_is_cut_short_is_named(speaker: Path, tmp_path: Path, share: float) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(speaker.read_bytes()[: int(share * speaker.stat().st_size)])
    with pytest.raises(ModelLoadFailed) as failed:
        load(tmp_path)
    assert str(failed.value).startswith(f"{file}: ")
    assert "\n" not in str(failed.value)


def test_a_model_is_one_gguf_file(speaker: Path, tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).symlink_to(speaker)
    with pytest.raises(ModelLoadFailed, match="2 GGUF files"):
        load(tmp_path)
