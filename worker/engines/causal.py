"""Causal language models: loaded, and seen to be what they say."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from contracts.errors import ModelLoadFailed, describe
from worker.engines.cache import RowCache
from worker.engines.decoding import Decoder
from worker.layout import Layout, input_device
from worker.loading import load_model, load_module
from worker.onnx import GRAPH, OnnxModule, graph_file
from worker.variants import Variant

ATTENTION = frozenset({"full_attention", "sliding_attention"})
"""Layers whose past is keys and values, a column a token: what rows of a batch can be put together and cut from."""


EXACT, ROUNDED = 0.001, 0.1
"""How far texts may be from what they are alone, in float32 and in all else; SmolLM2 is 0.00001 and, in fp16, 0.01."""


def load_causal(folder: Path, variant: Variant, device: str | Layout) -> PreTrainedModel:
    """The language model in the folder, on the device, after first passes.

    Raises:
        ModelLoadFailed: It could not be loaded, a token does not follow from those before it alone, or the model
            says something else of a text beside others, or in parts, than of the text alone.
    """
    if graph_file(folder):
        raise ModelLoadFailed(f"{folder / GRAPH}: an ONNX model does not generate here; register the torch model")
    module = load_module(folder, variant.quantization, device, AutoModelForCausalLM, variant.dtype)
    config = module.config.get_text_config()
    if config.is_encoder_decoder:
        raise ModelLoadFailed(f"{folder}: {config.model_type} has an encoder; models of one stack are computed")
    others = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENTION)
    if others or getattr(module, "_is_stateful", False):
        kind = f"layers of {others[0]}" if others else "layers with a state"
        raise ModelLoadFailed(f"{folder}: {config.model_type} has {kind}; only attention is computed here")
    try:
        sees_ahead = _sees_ahead(module)
        with _row_by_row(module):
            astray = 0.0 if sees_ahead else _astray(module)
    except Exception as error:  # some layers are packed or refused in the first pass only
        raise ModelLoadFailed(f"{folder}: the first pass: {describe(error)}") from error
    if sees_ahead:
        raise ModelLoadFailed(f"{folder}: {config.model_type} looks at the tokens that follow, so it continues no text")
    if not astray <= (EXACT if variant.dtype == "float32" and not variant.quantization.packed else ROUNDED):
        raise ModelLoadFailed(
            f"{folder}: {config.model_type} does not say of a text beside others, or in parts, what it says of the "
            "text alone: it takes no padding at the left, or no cache of keys and values"
        )
    return module


def load_graph_of_causal(folder: Path, variant: Variant, device: str | Layout) -> PreTrainedModel | OnnxModule:
    """The language model in the folder as an ONNX graph, which keeps no keys and values, after a first pass.

    Raises:
        ModelLoadFailed: It could not be loaded, or a token does not follow from those before it alone.
    """
    module = load_model(folder, variant, device, AutoModelForCausalLM)
    try:
        sees_ahead = _sees_ahead(module)
    except Exception as error:
        raise ModelLoadFailed(f"{folder}: the first pass: {describe(error)}") from error
    if sees_ahead:
        raise ModelLoadFailed(
            f"{folder}: {module.config.model_type} looks at the tokens that follow, so it continues no text"
        )
    return module


def vocabulary(module: PreTrainedModel | OnnxModule) -> int:
    """The number of tokens that the model chooses from."""
    return int(module.config.get_text_config().vocab_size)


def _sees_ahead(module: PreTrainedModel | OnnxModule) -> bool:
    """Whether what the model says after a token changes with the token that follows."""
    last = vocabulary(module) - 1
    ids = torch.tensor([[last // 2, last // 3], [last // 2, last // 5]], device=input_device(module))
    with torch.inference_mode():
        first, second = module(input_ids=ids, return_dict=True).logits[:, 0].float()
    # bitsandbytes' 8-bit layers depend a little on what else is in a pass.
    return bool((first - second).abs().max() > 0.1 * first.std())


@torch.inference_mode()
def _astray(module: PreTrainedModel) -> float:
    """How far two texts are side by side, and one in parts, from each alone; 0 is the same, and 1 or so no relation.

    Some models take every argument and make nothing of it: openai-gpt of a cache, TrOCR and GIT of the places that
    tokens have behind padding.
    """
    last, device = vocabulary(module) - 1, input_device(module)
    parts = [2, 3, 5, 7, 11, 4, 9, 6], [13, 3, 8, 5]
    long, short = (torch.tensor([[last // part for part in row]], device=device) for row in parts)
    pads = torch.tensor([0, 4], device=device)
    # Of each text what follows its prompt, and what follows a token later.
    alone = [module(input_ids=ids, return_dict=True).logits[0, -2:].float() for ids in (long, short)]
    side_by_side = torch.cat([long, torch.nn.functional.pad(short, (4, 0))])
    decoder, cache = Decoder(module, frozenset()), RowCache(pads)
    beside = [decoder.forward(ids, cache).float() for ids in torch.split(side_by_side, [7, 1], dim=1)]
    past = DynamicCache()
    for ids in torch.split(long[:, :7], [4, 3], dim=1):
        in_parts = module(input_ids=ids, past_key_values=past, use_cache=True, return_dict=True).logits[0, -1].float()
    pairs = [(beside[step][row], alone[row][step]) for step in range(2) for row in range(2)]
    return max(_distance(*pair) for pair in [*pairs, (in_parts, alone[0][0])])


@contextmanager
def _row_by_row(module: PreTrainedModel) -> Iterator[None]:
    """Let 8-bit layers treat each token by itself.

    bitsandbytes computes columns with an outlier apart, wherever in a pass it is: texts that make no sense are then as
    far from what they are alone (SmolLM2: 0.5) as in a model that goes astray.
    """
    states: list[Any] = [layer.state for layer in module.modules() if type(layer).__name__ == "Linear8bitLt"]
    thresholds = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of logits, relative to their spread; NaN where one is no number."""
    return float((one - other).square().mean().sqrt() / other.std())
