"""What a folder says about scoring pairs of texts: the layout of sentence-transformers' CrossEncoder.

Read from `modules.json`, `sentence_bert_config.json`, `config_sentence_transformers.json` and `config.json`, as
sentence-transformers 6.2 does. What is not computed here is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from contracts.errors import ModelLoadFailed
from worker.engines.heads import read_config
from worker.engines.sentence import default_prompt, read_json, read_transformer

Activation: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, Activation] = {"Sigmoid": torch.sigmoid, "Identity": lambda logits: logits}
"""By the name of torch's class."""
ALLOWED: dict[str, Any] = {
    "transformer_task": "sequence-classification",
    "module_output_name": "scores",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
}
"""Keys of the transformer's file that may be there, with the one value that is computed here."""


@dataclass(frozen=True)
class CrossEncoderModel:
    """How pairs of texts become scores."""

    activation: Activation
    """Turns the model's output into the score."""
    max_tokens: int | None = None
    """Overrides what tokenizer and model say."""
    lower_case: bool = False


def read_cross_encoder(folder: Path) -> CrossEncoderModel:
    """What the folder says; without `modules.json` the score is the sigmoid of the output, or what `config.json` says.

    Raises:
        ModelLoadFailed: It asks for what is not computed here; the message names the file.
    """
    activation = _activation(folder)
    modules = read_json(folder / "modules.json", list)
    if modules is None:
        return CrossEncoderModel(activation)
    kinds = [str(module.get("type", "")) for module in modules]
    if [kind.rpartition(".")[2] for kind in kinds] != ["Transformer"] or modules[0].get("path"):
        raise ModelLoadFailed(
            f"{folder / 'modules.json'}: {', '.join(kinds) or 'nothing'}: what is computed is one Transformer with a "
            "head for classification, its files in the folder itself"
        )
    if default_prompt(folder / "config_sentence_transformers.json"):
        raise ModelLoadFailed(f"{folder / 'config_sentence_transformers.json'}: a default prompt is not computed")
    max_tokens, lower_case = read_transformer(folder, ALLOWED)
    return CrossEncoderModel(activation, max_tokens, lower_case)


def _activation(folder: Path) -> Activation:
    """The function that the folder names, in one of the places where sentence-transformers has kept it."""
    config = read_config(folder)
    own = read_json(folder / "config_sentence_transformers.json", dict) or {}
    has_modules = (folder / "modules.json").exists()
    places = [
        ("config_sentence_transformers.json", "activation_fn", own.get("activation_fn") if has_modules else None),
        ("config.json", "activation_fn", (config.get("sentence_transformers") or {}).get("activation_fn")),
        (
            "config.json",
            "sbert_ce_default_activation_function",
            config.get("sbert_ce_default_activation_function"),
        ),
    ]
    for file, key, path in places:
        if path is None:
            continue
        package, _, name = str(path).rpartition(".")
        if package.partition(".")[0] != "torch" or name not in ACTIVATIONS:
            raise ModelLoadFailed(f"{folder / file}: {key} {path!r} is not computed, only {' and '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]
    return torch.sigmoid
