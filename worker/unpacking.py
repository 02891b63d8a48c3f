"""LLM.int8's layers as plain ones, for processors that multiply integers slowly."""

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt


def unpack(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Put plain linear layers in the place of bitsandbytes' 8-bit ones, with the weights that these stand for.

    A weight is `integer * scale of its row / 127` (LLM.int8, Dettmers et al. 2022); what goes in is not quantized then.

    Args:
        module: Loaded, before its first pass.
        dtype: Of the weights that are unpacked.
    """
    for name, packed in list(module.named_modules()):
        if isinstance(packed, Linear8bitLt):
            module.set_submodule(name, _plain(packed, dtype))


def _plain(packed: Any, dtype: torch.dtype) -> torch.nn.Linear:
    layer = torch.nn.Linear(packed.in_features, packed.out_features, packed.bias is not None, "meta", dtype)
    scales = packed.weight.SCB.to(dtype)[:, None] / 127
    layer.weight = torch.nn.Parameter(packed.weight.data.to(dtype).mul_(scales), requires_grad=False)
    if packed.bias is not None:
        layer.bias = torch.nn.Parameter(packed.bias.data.to(dtype), requires_grad=False)
    return layer.eval()
