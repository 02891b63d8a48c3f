"""Which tasks a model's config says that it does: read from `architectures` and, for labels, `id2label`."""

from pathlib import Path
from typing import Any

from contracts.errors import ModelRefused
from contracts.names import Task
from producer.weights import read_object

_CLASSIFIER = ("ForSequenceClassification",)
_CAUSAL = ("ForCausalLM", "LMHeadModel")  # the older name of the same, as GPT-2 has it
_HEADS = {
    Task.CLASSIFY: _CLASSIFIER,
    Task.RERANK: _CLASSIFIER,
    Task.GENERATE: _CAUSAL,
    Task.SCORE: _CAUSAL,
}
"""How the architectures that do a task end; any will do for the others."""


def check_head(config_file: Path, task: Task) -> None:
    """Make sure that a model of this `config.json` does the task; what embeds is told by other files.

    Raises:
        ModelRefused: It has another head, or lacks the labels that it is to tell.
    """
    if task not in _HEADS:
        return
    config = read_object(config_file)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise ModelRefused(
            f"{config_file} has no `architectures`: nothing says whether the model does {task}; add the name of its "
            f"class, which ends in {_HEADS[task][0]}"
        )
    names = [str(name) for name in architectures]
    if not any(name.endswith(_HEADS[task]) for name in names):
        raise ModelRefused(
            f"{config_file.parent} is a {', '.join(names)}, and {task} needs a …{_HEADS[task][0]}: "
            f"{_suits(names)}, or choose another model"
        )
    labels = config.get("id2label")
    if task is Task.CLASSIFY:
        _check_labels(config_file, labels)
    elif task is Task.RERANK and isinstance(labels, dict) and len(labels) != 1:
        raise ModelRefused(
            f"{config_file}: the model has {len(labels)} outputs, and rerank needs one, the score of a pair: register "
            "it with task='classify', or choose a cross-encoder"
        )


def _suits(architectures: list[str]) -> str:
    tasks = [str(task) for task, heads in _HEADS.items() if any(name.endswith(heads) for name in architectures)]
    return f"register it with task={' or '.join(map(repr, tasks or ['embed']))}"


def _check_labels(config_file: Path, labels: Any) -> None:
    """Each output has a name, as `{"0": "negative", "1": "positive"}`."""
    if not isinstance(labels, dict) or not labels:
        raise ModelRefused(
            f'{config_file} has no `id2label`: add the names of the labels, as {{"0": "negative", "1": "positive"}}'
        )
    if {str(place) for place in range(len(labels))} != {*labels} or not all(
        isinstance(v, str) for v in labels.values()
    ):
        raise ModelRefused(
            f"{config_file}: `id2label` is to name each output from 0 to {len(labels) - 1} by a text, and has "
            f"{str(labels)[:200]}"
        )
