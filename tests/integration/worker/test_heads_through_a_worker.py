"""Classification and reranking from a folder to results, through a real worker."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from benchmarks.heads import PACKAGES, held_back, labelled, matches
from contracts.errors import InvalidInput, ModelRefused
from producer import Client
from producer.results import Result
from tests.conformance import ODD, scores_by
from tests.models import changed, model_spec
from worker.engines.classify import ClassifyEngine

LEAST = {"tiny": 0.0, "real": 0.6}
"""How many of a model's first answers have to be right: a tiny one has learned nothing."""


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.verify)])
def size(request: pytest.FixtureRequest) -> str:
    """Of the models."""
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def poisoned(size: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier, whose vector of one word is NaN."""
    classifier = request.getfixturevalue("real_classifier" if size == "real" else "classifier")
    folder = changed(classifier, tmp_path_factory.mktemp("poisoned"), {}, weights=False)
    weights = load_file(classifier / "model.safetensors")
    [token] = AutoTokenizer.from_pretrained(classifier)(ODD, add_special_tokens=False)["input_ids"]
    weights["bert.embeddings.word_embeddings.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def code_of(result: Result) -> str | None:
    return result.error and result.error.code


def test_texts_become_labels(client: Client, size: str, poisoned: Path) -> None:
    client.models.add("packages", str(poisoned), task="classify")
    examples = held_back(labelled())
    long = "one more word " * 600
    texts = [*(example.text for example in examples), long, f"a {ODD} among texts"]
    results = [*client.submit("packages", texts).wait(timeout=300).results()]
    assert [code_of(result) for result in results] == [None] * (len(examples) + 1) + ["non_finite"]
    assert [result.truncated for result in results[:-1]] == [False] * len(examples) + [True]
    right = [r.output[0]["label"] == example.label for r, example in zip(results, examples, strict=False)]
    assert sum(right) > LEAST[size] * len(right)
    engine = ClassifyEngine.load(model_spec(engine="classify", task="classify"), poisoned, "cpu")
    numbers = scores_by("label")
    for result, text in zip(results[:10], texts, strict=False):
        [expected] = engine.run(engine.prepare([text], {}).rows, {})
        assert {entry["label"] for entry in result.output} == set(PACKAGES)
        assert numbers(result.output) == pytest.approx(numbers(expected), rel=0, abs=1e-5)

    best = [*client.submit("packages", texts[:-1], params={"top_k": 1, "truncate": False}).wait(timeout=300).results()]
    assert code_of(best[-1]) == "too_long"
    for one, whole in zip(best[:-1], results, strict=False):
        [entry] = one.output
        assert entry["label"] == whole.output[0]["label"]
        assert entry["score"] == pytest.approx(whole.output[0]["score"], abs=1e-5)


def test_documents_are_ranked(client: Client, size: str, request: pytest.FixtureRequest) -> None:
    reranker = request.getfixturevalue("real_reranker" if size == "real" else "reranker")
    client.models.add("relevance", str(reranker), task="rerank")
    examples = held_back(matches())[:30]
    documents = [example.document for example in examples]
    rankings = [{"query": e.query, "documents": [e.other, e.document]} for e in examples]
    whole = {"query": examples[0].query, "documents": documents * 5}
    results = [*client.submit("relevance", [*rankings, whole]).wait(timeout=300).results()]
    assert [code_of(result) for result in results] == [None] * 31
    assert sum(result.output[0]["index"] for result in results[:-1]) > LEAST[size] * 30
    scores = [entry["score"] for entry in results[-1].output]
    assert scores == sorted(scores, reverse=True)
    assert sorted(entry["index"] for entry in results[-1].output) == list(range(150))

    [best] = client.submit("relevance", [whole], params={"top_k": 3}).wait(timeout=300).results()
    # Equal documents come in other micro-batches, so that their order is a matter of the last digits.
    assert [entry["score"] for entry in best.output] == pytest.approx(scores[:3], abs=1e-5)


def test_what_is_no_input_is_refused_with_its_line(client: Client, classifier: Path, reranker: Path) -> None:
    client.models.add("labels", str(classifier), task="classify")
    client.models.add("ranks", str(reranker), task="rerank")
    with pytest.raises(InvalidInput, match="item 2: expected a text, got an object with 'query', 'documents'"):
        client.submit("labels", ["text", {"query": "text", "documents": ["text"]}])
    with pytest.raises(InvalidInput, match=r"item 2: the query comes without documents"):
        client.submit("ranks", [{"query": "q", "documents": ["d"]}, {"query": "q", "documents": []}])
    with pytest.raises(InvalidInput, match=r"item 1: document 1 is a number, not a text"):
        client.submit("ranks", [{"query": "q", "documents": ["d", 1]}])


def test_a_classifier_without_labels_is_refused_at_once(client: Client, classifier: Path, tmp_path: Path) -> None:
    folder = changed(classifier, tmp_path, {"id2label": None})
    with pytest.raises(ModelRefused, match="id2label"):
        client.models.add("nameless", str(folder), task="classify")
