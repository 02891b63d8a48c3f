"""Causal language models: loaded, and seen to be what they say."""

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from contracts.errors import ModelLoadFailed, describe
from contracts.names import Quantization
from worker.loading import load_module

ATTENTION = frozenset({"full_attention", "sliding_attention"})
"""Layers whose past is keys and values, a column a token: what rows of a batch can be put together and cut from."""


def load_causal(folder: Path, quantization: Quantization, device: str) -> PreTrainedModel:
    """The language model in the folder, on the device, after a first pass.

    Raises:
        ModelLoadFailed: It could not be loaded, or a token does not follow from those before it alone.
    """
    module = load_module(folder, quantization, device, AutoModelForCausalLM)
    config = module.config.get_text_config()
    if config.is_encoder_decoder:
        raise ModelLoadFailed(f"{folder}: {config.model_type} has an encoder; models of one stack are computed")
    others = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENTION)
    if others or getattr(module, "_is_stateful", False):
        kind = f"layers of {others[0]}" if others else "layers with a state"
        raise ModelLoadFailed(f"{folder}: {config.model_type} has {kind}; only attention is computed here")
    try:
        sees_ahead = _sees_ahead(module)
    except Exception as error:  # some layers are packed or refused in the first pass only
        raise ModelLoadFailed(f"{folder}: the first pass: {describe(error)}") from error
    if sees_ahead:
        raise ModelLoadFailed(f"{folder}: {config.model_type} looks at the tokens that follow, so it continues no text")
    return module


def vocabulary(module: PreTrainedModel) -> int:
    """The number of tokens that the model chooses from."""
    return int(module.config.get_text_config().vocab_size)


def accepted(module: PreTrainedModel, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that this model's forward pass takes."""
    known = inspect.signature(module.forward).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _sees_ahead(module: PreTrainedModel) -> bool:
    """Whether what the model says after a token changes with the token that follows."""
    last = vocabulary(module) - 1
    ids = torch.tensor([[last // 2, last // 3], [last // 2, last // 5]], device=module.device)
    with torch.inference_mode():
        first, second = module(input_ids=ids, return_dict=True).logits[:, 0].float()
    # bitsandbytes' 8-bit layers depend a little on what else is in a pass.
    return bool((first - second).abs().max() > 0.1 * first.std())
