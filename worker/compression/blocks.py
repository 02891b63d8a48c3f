"""The layers that a transformer is stacked of."""

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from contracts.errors import CompressionFailed


def blocks(module: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """The layers of an encoder or decoder by their names, such as `encoder.layer.0`, first to last.

    Embeddings, heads and poolers are in none of them.

    Raises:
        CompressionFailed: The model is no stack of layers.
    """
    depth = module.config.get_text_config().num_hidden_layers
    for name, part in module.base_model.named_modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == depth:
            return {f"{name}.{number}": layer for number, layer in enumerate(part)}
    raise CompressionFailed(
        f"{module.config.model_type} is no stack of {depth} layers, and only such models are pruned"
    )


def linear_layers(block: torch.nn.Module) -> list[torch.nn.Module]:
    """What multiplies by a matrix of weights in a layer; gpt2's kind, with rows for columns, is one too."""
    return [part for part in block.modules() if isinstance(part, (torch.nn.Linear, Conv1D))]
