"""Labels with scores for texts, as the model's config says."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import torch
from transformers import PreTrainedModel

from contracts.errors import ModelLoadFailed
from contracts.models import ModelSpec
from contracts.names import Task
from worker.engines.base import Output, Prepared
from worker.engines.heads import HeadEngine, load_head, read_config
from worker.engines.padding import Ids
from worker.engines.text import TextTokenizer
from worker.layout import Layout
from worker.onnx import OnnxModule
from worker.variants import Variant, stored

Activation: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class ClassifyEngine(HeadEngine):
    """A transformer with a head whose outputs have names.

    `problem_type` in the config says what becomes of the outputs: `single_label_classification` softmax,
    `multi_label_classification` sigmoid, `regression` the bare numbers. Where it says nothing, several outputs go
    through softmax, and one is a regression. TextClassificationPipeline of transformers 5.23 does the same, except
    that it takes the sigmoid of a single output then. A single output is no choice between labels: transformers
    refuses such a config.
    """

    def __init__(self, module: PreTrainedModel | OnnxModule, tokenizer: TextTokenizer, labels: Sequence[str]) -> None:
        super().__init__(module)
        self._tokenizer = tokenizer
        self._labels = labels
        self._activation = _activation(module.config.problem_type, len(labels))

    @classmethod
    def load(cls, model: ModelSpec, folder: Path, device: str | Layout, variant: Variant | None = None) -> Self:
        """The model, ready on the device, after a first forward pass that showed that it can run."""
        if model.task is not Task.CLASSIFY:
            raise ModelLoadFailed(f"model {model.reference}: the classify engine does not {model.task}")
        labels = read_labels(folder)
        module = load_head(folder, variant or stored(model), device)
        engine = cls(module, TextTokenizer(folder, module.config), labels)
        engine._try(folder, {})
        return engine

    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        """Texts as token ids."""
        return self._tokenizer.prepare(payloads, params)

    def run(self, rows: Sequence[Ids], params: Mapping[str, Any]) -> Output:
        """For each text a list of `{"label", "score"}`, best first, at most `top_k` of them."""
        top_k = params.get("top_k")
        with torch.inference_mode():
            # Equal scores keep the order of the outputs.
            scores, places = self._activation(self._logits(rows)).sort(dim=-1, descending=True, stable=True)
            best = zip(scores[:, :top_k].tolist(), places[:, :top_k].tolist(), strict=True)
        return [
            [{"label": self._labels[place], "score": score} for score, place in zip(*row, strict=True)] for row in best
        ]

    def synthetic(self, length: int, count: int) -> list[Ids]:
        """Rows of one ordinary token again and again."""
        return self._tokenizer.synthetic(length, count)


def read_labels(folder: Path) -> list[str]:
    """The name of each output, from `id2label` in the folder's `config.json`.

    Raises:
        ModelLoadFailed: There are none, or an output between others has none.
    """
    named = read_config(folder).get("id2label")
    file = folder / "config.json"
    example = 'such as "id2label": {"0": "negative", "1": "positive"}, in the order of the outputs'
    if not isinstance(named, dict) or not named:
        raise ModelLoadFailed(f"{file}: id2label is missing: it names the labels; add it, {example}")
    try:
        return [named[str(i)] for i in range(len(named))]
    except KeyError as missing:
        raise ModelLoadFailed(
            f"{file}: id2label has {len(named)} entries and none for {missing}: give one for each output, {example}"
        ) from None


def _activation(problem_type: str | None, outputs: int) -> Activation:
    match problem_type:
        case "regression":
            return lambda logits: logits
        case "multi_label_classification":
            return torch.sigmoid
        case None if outputs == 1:
            return lambda logits: logits
        case _:
            return lambda logits: logits.softmax(-1)
