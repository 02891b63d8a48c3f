import json

import pytest

from contracts.errors import ModelRefused
from contracts.names import Task
from producer.sources.heads import check_head

LABELS = {"0": "bad", "1": "good"}
SCORE = {"0": "LABEL_0"}


@pytest.fixture
def check(tmp_path):
    def check(task: Task, **config: object) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        check_head(tmp_path / "config.json", task)

    return check


@pytest.mark.parametrize(
    ("architecture", "tasks"),
    [
        ("BertForSequenceClassification", {Task.CLASSIFY, Task.RERANK}),
        ("LlamaForCausalLM", {Task.GENERATE, Task.SCORE}),
        ("GPT2LMHeadModel", {Task.GENERATE, Task.SCORE}),
        ("BertModel", set()),
        ("T5ForConditionalGeneration", set()),
        ("BertForTokenClassification", set()),
    ],
)
def test_a_head_does_its_tasks_and_no_other(check, architecture, tasks):
    check(Task.EMBED, architectures=[architecture])
    for task in set(Task) - {Task.EMBED}:
        if task in tasks:
            check(task, architectures=[architecture], id2label=SCORE if task is Task.RERANK else LABELS)
        else:
            with pytest.raises(ModelRefused, match=rf"is a {architecture}, and {task} needs a …For") as raised:
                check(task, architectures=[architecture], id2label=LABELS)
            assert [str(other) in str(raised.value) for other in tasks] == [True] * len(tasks)


def test_a_config_without_architectures_says_nothing(check):
    check(Task.EMBED)
    for value in ({}, {"architectures": None}, {"architectures": []}, {"architectures": "BertModel"}):
        with pytest.raises(ModelRefused, match=r"config\.json has no `architectures`.*ends in ForCausalLM"):
            check(Task.GENERATE, **value)


@pytest.mark.parametrize("labels", [None, {}, []])
def test_labels_that_are_missing_are_asked_for(check, labels):
    with pytest.raises(ModelRefused, match=r"config\.json has no `id2label`: add the names"):
        check(Task.CLASSIFY, architectures=["BertForSequenceClassification"], id2label=labels)
    check(Task.RERANK, architectures=["BertForSequenceClassification"])


@pytest.mark.parametrize("labels", [{"0": "a", "2": "b"}, {"0": "a", "1": None}, {"a": "0"}, {"1": "a"}])
def test_each_output_has_a_label(check, labels):
    with pytest.raises(ModelRefused, match=r"`id2label` is to name each output from 0"):
        check(Task.CLASSIFY, architectures=["BertForSequenceClassification"], id2label=labels)


def test_a_pair_has_one_score(check):
    with pytest.raises(ModelRefused, match=r"config\.json: the model has 2 outputs, and rerank needs one"):
        check(Task.RERANK, architectures=["BertForSequenceClassification"], id2label=LABELS)
