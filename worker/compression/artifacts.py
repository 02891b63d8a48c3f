"""Models on their way through a recipe: read from one folder, changed in memory, written whole into another."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from contracts.names import Quantization, Task
from worker.compression.order import Order
from worker.engines.sentence import read_json
from worker.loading import gguf_file, load_module, load_tokenizer, quiet

KINDS: dict[Task, type[_BaseAutoModelClass]] = {
    Task.EMBED: AutoModel,
    Task.CLASSIFY: AutoModelForSequenceClassification,
    Task.RERANK: AutoModelForSequenceClassification,
    Task.GENERATE: AutoModelForCausalLM,
    Task.SCORE: AutoModelForCausalLM,
}
"""What the engines of each task load: with the weights of this kind, and no others, a model is complete."""
WEIGHTS = frozenset({".safetensors", ".gguf", ".onnx", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"})
"""Suffixes of files that hold weights, and with `.index.json` behind them those that name such files."""


def transformer_folder(folder: Path) -> Path:
    """Where the weights and their `config.json` are: sentence-transformers may keep them in a folder of their own."""
    modules = read_json(folder / "modules.json", list)
    return folder / str(modules[0].get("path", "")) if modules else folder


def load_for_compression(order: Order) -> PreTrainedModel:
    """The source of a step with all weights that its task needs, on the CPU, in the type that they are stored in.

    Raises:
        ModelLoadFailed: It could not be loaded, or is quantized.
    """
    folder = transformer_folder(order.source)
    return load_module(folder, stored_type(folder, order.quantization), "cpu", KINDS[order.task])


def stored_type(folder: Path, quantization: Quantization) -> Quantization:
    """The floating-point type to hold weights in so that none is lost: `none` is float32.

    A model that is computed in float32 may well be stored in half of it.
    """
    if quantization is not Quantization.NONE:
        return quantization
    types = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            types |= {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    floats = {name for name in types if "F" in name}
    return {"BF16": Quantization.BF16, "F16": Quantization.FP16}.get("".join(floats), Quantization.NONE)


def save(module: PreTrainedModel, source: Path, destination: Path) -> None:
    """Write a model as a complete folder: its weights as safetensors, all else from the folder that it came from.

    Equal weights make equal bytes. A 4-bit model must not have computed anything before.
    """
    weights = transformer_folder(source)
    folder = destination / weights.relative_to(source)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        module.save_pretrained(folder)
        if gguf_file(weights):
            load_tokenizer(weights).save_pretrained(folder)
    _complete_config(module, weights / "config.json", folder / "config.json")
    copy_others(source, destination, but=weights / "config.json")


def copy_others(source: Path, destination: Path, but: Path | None = None) -> None:
    """Copy all files that hold no weights, but for one."""
    for file in sorted(source.rglob("*")):
        if file.is_file() and not _holds_weights(file) and file != but:
            copy = destination / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def notes_on(source: Path) -> list[str]:
    """What a reader should know of the weights that a step began with."""
    packed = gguf_file(transformer_folder(source))
    if packed is None:
        return []
    return [f"The weights were unpacked from {packed.name}, where they are quantized: what that cost stays lost."]


def _holds_weights(file: Path) -> bool:
    return file.suffix in WEIGHTS or Path(file.name.removesuffix(".index.json")).suffix in WEIGHTS


def _complete_config(module: PreTrainedModel, source: Path, destination: Path) -> None:
    """Put back what the library leaves out as its default, labels among it: engines read them from the file."""
    named = read_json(source, dict) or {}
    values = module.config.to_dict()
    kept = {key: values[key] for key in named if key in values and key != "_name_or_path"}
    written = json.loads(destination.read_text(encoding="utf-8"))
    if "quantization_config" in written and isinstance(getattr(module, "pooler", None), torch.nn.Identity):
        # Or the next load looks for its packed weights, and makes some up that it then cannot pack.
        written["quantization_config"]["llm_int8_skip_modules"] = ["pooler"]
    destination.write_text(json.dumps(kept | written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
