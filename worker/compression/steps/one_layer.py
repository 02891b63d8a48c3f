"""One layer treated as a step treats all: what shows which layers can bear it."""

from copy import deepcopy

import torch
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from transformers import PreTrainedModel

from contracts.errors import CompressionFailed
from contracts.recipes import PruneMagnitude, PruneStructured, Quantize, Step
from worker.compression.blocks import blocks, linear_layers
from worker.compression.steps.magnitude import sparsify
from worker.compression.steps.structured import family_of, kept_counts, prune_layer
from worker.shapes import head_groups


def names_of_blocks(module: PreTrainedModel) -> list[str]:
    """The layers of a model, first to last, such as `encoder.layer.0`.

    Raises:
        CompressionFailed: The model is no stack of layers.
    """
    return list(blocks(module))


def treated(module: PreTrainedModel, step: Step, block: str) -> PreTrainedModel:
    """The model with one of its layers pruned or quantized; the others share their weights with it.

    The module is float, on a CPU, and stays as it is. A global pruning takes its share of the layer alone.

    Raises:
        CompressionFailed: The step is of another kind, or does not suit the model.
    """
    layer = blocks(module)[block]
    own = {id(tensor) for tensor in (*layer.parameters(), *layer.buffers())}
    others = (*module.parameters(), *module.buffers())
    copy = deepcopy(module, {id(tensor): tensor for tensor in others if id(tensor) not in own})
    _treat(copy, blocks(copy)[block], step)
    return copy


def _treat(module: PreTrainedModel, layer: torch.nn.Module, step: Step) -> None:
    match step:
        case PruneMagnitude():
            sparsify(linear_layers(layer), step)
        case PruneStructured():
            family = family_of(module.config)
            prune_layer(layer, family, step, head_groups(module.config), kept_counts(module, family, step))
        case Quantize():
            _quantize(layer, step)
        case _:
            raise CompressionFailed(f"{step.step}: only pruning and quantizing treat one layer by itself")


def _quantize(layer: torch.nn.Module, step: Quantize) -> None:
    if step.method in ("bf16", "fp16"):
        short = torch.bfloat16 if step.method == "bf16" else torch.float16
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(short).to(parameter.dtype)
        return
    for name, linear in list(layer.named_modules()):
        if type(linear) is torch.nn.Linear:
            layer.set_submodule(name, _packed(linear, step))


def _packed(linear: torch.nn.Linear, step: Quantize) -> torch.nn.Module:
    """The layer as bitsandbytes holds it, in 16 bits before it is packed, as at every load."""
    weight = linear.weight.detach().to(torch.bfloat16)
    shape = (linear.in_features, linear.out_features, linear.bias is not None)
    packed: Linear8bitLt | Linear4bit
    with torch.device("meta"):
        if step.method == "int8":
            packed = Linear8bitLt(*shape, has_fp16_weights=False, threshold=6.0)
            packed.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            packed = Linear4bit(*shape, torch.bfloat16)
            packed.weight = Params4bit(
                weight, requires_grad=False, compress_statistics=step.double, quant_type=step.method, module=packed
            )
    packed.bias = linear.bias
    held: torch.nn.Module = packed.to("cpu").eval()
    return held
