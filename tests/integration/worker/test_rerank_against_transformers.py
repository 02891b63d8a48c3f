"""Rankings are those of sentence-transformers' CrossEncoder, and pairs are tokenized as transformers does it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoTokenizer
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from benchmarks.heads import held_back, matches
from benchmarks.texts import stdlib_docstrings
from contracts.errors import ModelLoadFailed
from tests.models import MINILM, changed, model_spec
from worker.engines.pairs import PairTokenizer
from worker.engines.rerank import RerankEngine

LONG = "one more word " * 300
RANKINGS = [
    {"query": "close a file", "documents": stdlib_docstrings(600)[::40]},
    {"query": "", "documents": ["", "a", LONG]},
    {"query": LONG, "documents": ["short", LONG, "日本語のテキスト、句読点。", "[SEP] [PAD] [CLS]"]},
    {"query": "encode an object as JSON", "documents": ["the same text", "another one", "the same text"]},
]
TRANSFORMER = {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
PROMPTED = {"prompts": {"q": "query: "}, "default_prompt_name": "q"}
IDENTITY = "torch.nn.modules.linear.Identity"


def load(folder: Path) -> RerankEngine:
    return RerankEngine.load(model_spec(engine="rerank", task="rerank"), folder, "cpu")


def ours(folder: Path, rankings: list[dict[str, Any]], **params: Any) -> list[Any]:
    engine = load(folder)
    prepared = engine.prepare(rankings, params)
    assert prepared.errors == {}
    return list(engine.run(prepared.rows, params))


def assert_same_as_theirs(folder: Path, found: list[Any]) -> None:
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    for ranking, mine in zip(RANKINGS, found, strict=True):
        yours = model.predict([(ranking["query"], document) for document in ranking["documents"]])
        scores = [entry["score"] for entry in mine]
        assert scores == sorted(scores, reverse=True)
        assert sorted(entry["index"] for entry in mine) == list(range(len(yours)))
        np.testing.assert_allclose(scores, yours[[entry["index"] for entry in mine]], rtol=0, atol=1e-5)


@pytest.mark.verify
def test_the_head_has_learned_something(real_reranker: Path) -> None:
    examples = held_back(matches())
    rankings = [{"query": e.query, "documents": [e.other, e.document]} for e in examples]
    outputs = ours(real_reranker, rankings, top_k=1)
    assert np.mean([output[0]["index"] for output in outputs]) > 0.7  # by chance: 0.5
    assert {len(output) for output in outputs} == {1}


def test_scores_and_order(reranker: Path) -> None:
    found = ours(reranker, RANKINGS)
    assert_same_as_theirs(reranker, found)
    assert all(0 < entry["score"] < 1 for output in found for entry in output)
    # Equal scores keep the order of the documents.
    places = [entry["index"] for entry in found[3]]
    assert places.index(2) == places.index(0) + 1
    assert ours(reranker, RANKINGS, top_k=2) == [output[:2] for output in found]


@pytest.mark.parametrize(
    "change",
    [
        {"sentence_transformers": {"activation_fn": IDENTITY}},
        {"sbert_ce_default_activation_function": IDENTITY},
    ],
)
def test_the_activation_that_the_config_names(reranker: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = changed(reranker, tmp_path, change)
    found = ours(folder, RANKINGS)
    assert_same_as_theirs(folder, found)
    assert min(entry["score"] for output in found for entry in output) < 0


def test_a_folder_that_cross_encoder_saved(reranker: Path, tmp_path: Path) -> None:
    CrossEncoder(str(reranker), device="cpu", local_files_only=True, max_length=40).save_pretrained(str(tmp_path))
    own = tmp_path / "config_sentence_transformers.json"
    own.write_text(json.dumps(json.loads(own.read_text()) | {"activation_fn": IDENTITY}))
    found = ours(tmp_path, RANKINGS)
    assert_same_as_theirs(tmp_path, found)
    assert load(tmp_path).prepare(RANKINGS, {}).truncated.tolist() == [True] * 3 + [False]


PROCESSORS: dict[str, tuple[Any, list[str], int]] = {
    # What joins a pair, what the model takes besides, and how many tokens are added.
    "bert": (processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101)), ["token_type_ids"], 3),
    "roberta": (processors.RobertaProcessing(("[SEP]", 102), ("[CLS]", 101)), [], 4),
    "bare": (processors.TemplateProcessing(single="$A", pair="$A:0 $B:1", special_tokens=[]), ["token_type_ids"], 0),
}


@pytest.mark.parametrize("limit", [8, 9, 21])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_pairs_are_cut_and_joined_as_tokenizers_does_it(tmp_path: Path, kind: str, side: str, limit: int) -> None:
    processor, more, added = PROCESSORS[kind]
    backend = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    backend.post_processor = processor
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        truncation_side=side,
        model_max_length=limit,
        model_input_names=["input_ids", *more],
        pad_token="[PAD]",
    ).save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.num_special_tokens_to_add(pair=True) == added
    mine = PairTokenizer(tmp_path, AutoConfig.from_pretrained(MINILM))
    texts = [" ".join(["word"] * count) for count in (0, 1, 2, 3, 4, 5, 8, 9, 13, 18, 30)]
    words = ["[SEP]", "naïve café", "l'été"]
    rankings = [{"query": query, "documents": ["x", *texts, *words]} for query in ("q", *texts, *words)]
    prepared = mine.prepare(rankings, {})
    for ranking, row, cut, error in zip(
        rankings, prepared.rows, prepared.truncated, (prepared.errors.get(i) for i in range(len(rankings))), strict=True
    ):
        pairs = [(ranking["query"], document) for document in ranking["documents"]]
        whole = theirs(*map(list, zip(*pairs, strict=True)))["input_ids"]
        if error is not None:
            assert any(not ids for ids in whole)
            continue
        expected = theirs(*map(list, zip(*pairs, strict=True)), truncation="longest_first")
        assert [ids.tolist() for ids in row.ids] == expected["input_ids"]
        assert [types.tolist() for types in row.types] == expected.get("token_type_ids", [])
        assert cut == any(len(ids) > limit for ids in whole)


@pytest.mark.parametrize(
    ("files", "change", "reason"),
    [
        ({}, {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, "Tanh"),
        ({}, {"sbert_ce_default_activation_function": "mine.Identity"}, "sbert_ce_default_activation_function"),
        ({}, {"id2label": {"0": "a", "1": "b"}}, "id2label has to name each output"),
        ({"modules.json": [TRANSFORMER, {"type": "sentence_transformers.base.modules.Dense"}]}, {}, "modules.Dense"),
        ({"modules.json": [TRANSFORMER], "config_sentence_transformers.json": PROMPTED}, {}, "default prompt"),
    ],
)
def test_a_model_that_asks_for_something_else(
    reranker: Path, tmp_path: Path, files: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    folder = changed(reranker, tmp_path, change)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelLoadFailed) as failed:
        load(folder)
    assert str(folder) in str(failed.value)
    assert reason in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_classifier_ranks_nothing(classifier: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="one output, and this one has 5"):
        load(classifier)
