"""Models to test with: specs made by hand, and folders of small models, changed as a test needs them."""

import json
from pathlib import Path
from typing import Any

from benchmarks.specs import model_spec
from benchmarks.weights import MINILM, SMOLLM2

__all__ = ["MINILM", "SMOLLM2", "changed", "model_spec", "save_language_model", "save_smollm2", "variant"]


def variant(folder: Path, files: dict[str, Any], source: Path = MINILM) -> Path:
    """A folder with a model's weights and other files: JSON values by path, None for a file to leave out."""
    for original in source.rglob("*.*"):
        path = str(original.relative_to(source))
        if original.is_file() and path not in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(original)
    for path, value in files.items():
        if value is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(json.dumps(value))
    return folder


def changed(model: Path, folder: Path, config: dict[str, Any], *, weights: bool = True) -> Path:
    """The folder with the model's files and a `config.json` that differs."""
    for original in model.iterdir():
        if original.name != "config.json" and (weights or original.suffix != ".safetensors"):
            (folder / original.name).symlink_to(original)
    values = json.loads((model / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def save_smollm2(folder: Path) -> Path:
    """A Hugging Face folder with SmolLM2 in bfloat16, its tokenizer and its chat template."""
    from transformers import AutoModelForCausalLM

    from contracts.names import Quantization
    from worker.loading import load_module, load_tokenizer

    load_module(SMOLLM2.parent, Quantization.BF16, "cpu", AutoModelForCausalLM).save_pretrained(folder)
    load_tokenizer(SMOLLM2.parent).save_pretrained(folder)
    return folder


def save_language_model(smollm2: Path, folder: Path, *, layers: int, positions: int) -> Path:
    """The same with the first layers alone, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from contracts.names import Quantization
    from worker.loading import load_module, load_tokenizer

    module: Any = load_module(smollm2, Quantization.NONE, "cpu", AutoModelForCausalLM)
    del module.model.layers[layers:]
    # Words that go in and words that come out have vectors of their own, so that a test can spoil one of them.
    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())
    module.config.update({"num_hidden_layers": layers, "max_position_embeddings": positions})
    module.config.tie_word_embeddings = False
    module.save_pretrained(folder)
    load_tokenizer(smollm2).save_pretrained(folder)
    return folder
