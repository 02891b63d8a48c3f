"""Labels and scores are those of transformers' own pipeline, for each way of turning outputs into scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, pipeline

from benchmarks.heads import PACKAGES, held_back, labelled
from benchmarks.texts import stdlib_docstrings
from contracts.errors import ModelLoadFailed
from tests.models import changed, model_spec
from worker.engines.classify import ClassifyEngine

TEXTS = ["", "a", "word " * 600, "日本語のテキスト、句読点。", "[SEP] [PAD] [CLS]", *stdlib_docstrings(900)[::30]]
ONE_LABEL = {"id2label": {"0": "asyncio"}, "label2id": {"asyncio": 0}}


def load(folder: Path) -> ClassifyEngine:
    return ClassifyEngine.load(model_spec(engine="classify", task="classify"), folder, "cpu")


def ours(folder: Path, texts: list[str], **params: Any) -> list[list[dict[str, Any]]]:
    """In batches of twelve, in order of length."""
    engine = load(folder)
    prepared = engine.prepare(texts, params)
    assert prepared.errors == {}
    order = np.argsort(prepared.lengths)
    outputs: list[Any] = [None] * len(texts)
    for part in np.array_split(order, -(-len(texts) // 12)):
        for place, output in zip(part, engine.run([prepared.rows[i] for i in part], params), strict=True):
            outputs[place] = output
    return outputs


def theirs(folder: Path, texts: list[str], **params: Any) -> list[list[dict[str, Any]]]:
    run = pipeline("text-classification", model=str(folder), device="cpu")
    return [run(text, truncation=True, top_k=None, **params) for text in texts]


def assert_same(found: list[list[dict[str, Any]]], expected: list[list[dict[str, Any]]]) -> None:
    for mine, yours in zip(found, expected, strict=True):
        scores = {entry["label"]: entry["score"] for entry in yours}
        assert [entry["score"] for entry in mine] == sorted((entry["score"] for entry in mine), reverse=True)
        assert {entry["label"] for entry in mine} == set(scores)
        for entry in mine:
            assert entry["score"] == pytest.approx(scores[entry["label"]], rel=0, abs=1e-5)


@pytest.fixture(scope="module")
def one_output(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier's first output alone."""
    folder = changed(classifier, tmp_path_factory.mktemp("one"), ONE_LABEL, weights=False)
    whole = AutoModelForSequenceClassification.from_pretrained(classifier)
    one = AutoModelForSequenceClassification.from_pretrained(classifier, ignore_mismatched_sizes=True, **ONE_LABEL)
    one.classifier.weight.data = whole.classifier.weight.data[:1]
    one.classifier.bias.data = whole.classifier.bias.data[:1]
    one.save_pretrained(folder)
    return folder


@pytest.mark.verify
def test_the_head_has_learned_something(real_classifier: Path) -> None:
    examples = held_back(labelled())
    outputs = ours(real_classifier, [example.text for example in examples], top_k=1)
    right = [output[0]["label"] == example.label for output, example in zip(outputs, examples, strict=True)]
    assert np.mean(right) > 0.6  # by chance: 0.2
    assert {len(output) for output in outputs} == {1}


@pytest.mark.parametrize(
    "problem_type", [None, "single_label_classification", "multi_label_classification", "regression"]
)
def test_several_outputs(classifier: Path, tmp_path: Path, problem_type: str | None) -> None:
    folder = changed(classifier, tmp_path, {"problem_type": problem_type})
    found = ours(folder, TEXTS)
    assert_same(found, theirs(folder, TEXTS))
    sums = {round(sum(entry["score"] for entry in output), 3) for output in found}
    assert (sums == {1.0}) == (problem_type in (None, "single_label_classification"))


def test_one_output_is_no_choice_between_labels(one_output: Path, tmp_path: Path) -> None:
    """Its softmax would be 1, whatever the text."""
    folder = changed(one_output, tmp_path, {"problem_type": "single_label_classification"})
    with pytest.raises(ModelLoadFailed, match="requires `num_labels > 1`"):
        ours(folder, TEXTS)


@pytest.mark.parametrize("problem_type", [None, "regression", "multi_label_classification"])
def test_one_output(one_output: Path, tmp_path: Path, problem_type: str | None) -> None:
    folder = changed(one_output, tmp_path, {"problem_type": problem_type})
    found = ours(folder, TEXTS)
    # The one place where we differ: they take the sigmoid of a head that does not say that it is a regression.
    assert_same(found, theirs(folder, TEXTS, **({"function_to_apply": "none"} if problem_type is None else {})))
    bare = min(output[0]["score"] for output in found) < 0
    assert bare == (problem_type in (None, "regression"))


def test_the_best_labels_come_first(classifier: Path) -> None:
    whole, best = ours(classifier, TEXTS[:10]), ours(classifier, TEXTS[:10], top_k=2)
    assert best == [output[:2] for output in whole]
    assert ours(classifier, TEXTS[:10], top_k=99) == whole
    assert {entry["label"] for entry in whole[0]} == set(PACKAGES)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id2label": None}, "config.json: id2label is missing"),
        ({"id2label": {}}, "config.json: id2label is missing"),
        ({"id2label": {"0": "a", "1": "b", "5": "c"}}, "id2label has 3 entries and none for '2'"),
        ({"id2label": {"0": "a", "1": "b"}}, "id2label has to name each output"),
        ({"pad_token_id": None}, "pad_token_id is missing"),
    ],
)
def test_a_config_that_says_too_little(classifier: Path, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = changed(classifier, tmp_path, change)
    with pytest.raises(ModelLoadFailed) as failed:
        load(folder)
    assert str(folder) in str(failed.value)
    assert reason in str(failed.value)
    assert "\n" not in str(failed.value)
    assert json.loads((classifier / "config.json").read_text())["id2label"]["0"] == "asyncio"
