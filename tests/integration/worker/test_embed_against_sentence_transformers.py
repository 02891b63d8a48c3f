"""Embeddings are those of sentence-transformers, for every way of pooling that is computed here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

from benchmarks.texts import stdlib_docstrings
from tests.models import MINILM, model_spec, variant
from worker.engines.embed import EmbedEngine

EXTRA = [
    "",
    " \n\t ",
    "word " * 3000,
    "ein Übergrößenträger",
    "日本語のテキスト、句読点。",
    "🙂" * 40,
    "e\u0301 is not é, A\u200bB",
    "[CLS] [SEP] [PAD] [MASK]",
    "SHOUTED",
]
TRANSFORMER = "sentence_transformers.models.Transformer"
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
PLAIN = [{"idx": 0, "name": "0", "path": "", "type": TRANSFORMER}, {"idx": 1, "name": "1", **POOLING}]
CASED = json.loads((MINILM / "tokenizer.json").read_text())
CASED["normalizer"]["lowercase"] = False
CASED_CONFIG = json.loads((MINILM / "tokenizer_config.json").read_text()) | {"do_lower_case": False}

VARIANTS: dict[str, dict[str, Any]] = {
    "cls": {"1_Pooling/config.json": {"word_embedding_dimension": 384, "pooling_mode_cls_token": True}},
    "lasttoken": {"1_Pooling/config.json": {"embedding_dimension": 384, "pooling_mode": "lasttoken"}},
    "max": {"1_Pooling/config.json": {"word_embedding_dimension": 384, "pooling_mode_max_tokens": True}},
    "two, joined": {
        "1_Pooling/config.json": {"embedding_dimension": 384, "pooling_mode": ["mean_sqrt_len_tokens", "cls"]},
        "modules.json": PLAIN,
    },
    "not normalized": {"modules.json": PLAIN},
    "no modules": {"modules.json": None},
    "short": {"sentence_bert_config.json": {"max_seq_length": 12}},
    "cased": {"tokenizer.json": CASED, "tokenizer_config.json": CASED_CONFIG},
    "made lower case": {
        "tokenizer.json": CASED,
        "tokenizer_config.json": CASED_CONFIG,
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": True},
    },
    "prompted": {
        "config_sentence_transformers.json": {"prompts": {"q": "query: "}, "default_prompt_name": "q"},
    },
}


def ours(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    engine = EmbedEngine.load(model_spec(engine="embed"), folder, "cpu")
    prepared = engine.prepare(texts, {})
    assert prepared.errors == {}
    order = np.argsort(prepared.lengths)
    vectors = [engine.run([prepared.rows[i] for i in part], {}) for part in np.array_split(order, -(-len(texts) // 12))]
    return np.concatenate(vectors)[np.argsort(order)]


def theirs(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(texts, batch_size=12, show_progress_bar=False)


def assert_same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.shape == expected.shape
    sizes = np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(*sizes, rtol=1e-4)
    assert ((found * expected).sum(1) / (sizes[0] * sizes[1])).min() >= 0.99999


@pytest.mark.parametrize("model", ["encoder", pytest.param("real_encoder", marks=pytest.mark.verify)])
def test_the_model_as_it_is(model: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    texts = EXTRA + stdlib_docstrings(3000)[::10]
    found, expected = ours(folder, texts), theirs(folder, texts)
    assert_same(found, expected)
    bits = EmbedEngine.load(model_spec(engine="embed"), folder, "cpu")
    rows = bits.prepare(EXTRA[3:4], {}).rows
    np.testing.assert_array_equal(
        bits.run(rows, {"precision": "ubinary"}), quantize_embeddings(expected[3:4], precision="ubinary")
    )


@pytest.fixture(scope="module")
def plain() -> NDArray[np.float32]:
    return ours(MINILM, EXTRA)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant(name: str, plain: NDArray[np.float32], tmp_path: Path) -> None:
    folder = variant(tmp_path, VARIANTS[name])
    found, expected = ours(folder, EXTRA), theirs(folder, EXTRA)
    assert_same(found, expected)
    # A variant that changed nothing would show nothing.
    assert found.shape != plain.shape or np.abs(found - plain).max() > 0.01


def test_the_truncated_flag_says_what_sentence_transformers_cuts() -> None:
    texts = [" ".join(["word"] * count) for count in (252, 253, 254, 255, 256, 257, 600)]
    engine = EmbedEngine.load(model_spec(engine="embed"), MINILM, "cpu")
    tokenizer = SentenceTransformer(str(MINILM), device="cpu", local_files_only=True).tokenizer
    uncut = [len(ids) for ids in tokenizer(texts, truncation=False)["input_ids"]]
    assert engine.prepare(texts, {}).truncated.tolist() == [count > 256 for count in uncut]
    errors = engine.prepare(texts, {"truncate": False}).errors
    assert [str(uncut[i]) in error.message for i, error in errors.items()] == [True] * sum(c > 256 for c in uncut)
