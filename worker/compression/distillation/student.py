"""What is trained: some layers of the model so far, another model, or all of it."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from contracts.errors import CompressionFailed
from contracts.names import Quantization, Task
from contracts.recipes import Distill
from worker.compression.artifacts import KINDS, stored_type, transformer_folder
from worker.compression.order import Order
from worker.loading import HEADS, load_module


def student_folder(step: Distill, order: Order) -> Path:
    """Where the files of the student are, before it is trained."""
    if not isinstance(step.student, str):
        return order.source
    if order.student is None:
        raise CompressionFailed(f"distill: the files of the student {step.student} were not handed over")
    return order.student


def load_student(step: Distill, order: Order) -> PreTrainedModel:
    """The student before it is trained, on the CPU, in float32: sums of small updates are lost in fewer bits.

    Raises:
        CompressionFailed: A listed layer does not exist, or the model has no list of layers.
        ModelLoadFailed: It could not be loaded, or it is quantized.
    """
    folder = transformer_folder(student_folder(step, order))
    module = load_module(folder, Quantization.NONE, "cpu", KINDS[order.task])
    if isinstance(step.student, tuple):
        keep_layers(module, step.student)
    for name, weight in module.named_parameters():
        # What has no bearing on hidden states gets no gradient, which processes would wait for.
        if order.task is Task.EMBED and name.startswith(HEADS):
            weight.requires_grad_(False)
    return module


def saved_type(step: Distill, order: Order) -> Quantization:
    """The floating-point type that the student is saved in: the one of its files, or that it is registered as."""
    return stored_type(transformer_folder(student_folder(step, order)), order.quantization)


def keep_layers(module: PreTrainedModel, layers: tuple[int, ...]) -> None:
    """Leave these of the model's layers, ascending, from 0, and none of the others.

    What the config says of each layer is cut with them, and layers are told their new places: a cache of keys and
    values is looked up by these.

    Raises:
        CompressionFailed: A layer does not exist, or the model has no list of as many layers as its config says.
    """
    config = module.config.get_text_config()
    count = config.num_hidden_layers
    name, blocks = _blocks(module, count)
    if layers[-1] >= count:
        raise CompressionFailed(
            f"distill: student layer {layers[-1]}: {config.model_type} has {count} layers, 0 to {count - 1}"
        )
    module.set_submodule(name, nn.ModuleList(blocks[layer] for layer in layers))
    for place, layer in enumerate(layers):
        part: Any
        for part in blocks[layer].modules():
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = place
    for key, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == count and count > 1 and key not in _NOT_OF_LAYERS:
            setattr(config, key, type(value)(value[layer] for layer in layers))
    config.num_hidden_layers = len(layers)


_NOT_OF_LAYERS = ("architectures", "eos_token_id")
"""Lists in a config that may be as long as the model is deep by chance."""


def _blocks(module: PreTrainedModel, count: int) -> tuple[str, nn.ModuleList]:
    """The model's list of layers: the first that has as many as the config says, all of one class."""
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == count and len({type(block) for block in part}) == 1:
            return name, part
    raise CompressionFailed(
        f"distill: {module.config.model_type} has no list of {count} equal layers to choose from: leave student "
        "out, or name another model"
    )
