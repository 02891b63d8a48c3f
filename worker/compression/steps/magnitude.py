"""Unstructured pruning: weights that are close to zero become zero."""

from collections.abc import Sequence

import torch
from torch.nn.utils import prune

from contracts.recipes import PruneMagnitude
from worker.compression.artifacts import load_for_compression, notes_on, save
from worker.compression.blocks import blocks, linear_layers
from worker.compression.order import Order, Outcome, Progress

HALF = 16
"""Bits of a magnitude that are counted at a time."""


def run(step: PruneMagnitude, order: Order, progress: Progress) -> Outcome:
    """Zero the smallest weights of the linear layers in the encoder's or decoder's blocks.

    Embeddings, heads, norms and biases stay as they are.

    Raises:
        CompressionFailed: The model is no stack of layers.
        ModelLoadFailed: The source could not be loaded, or is quantized.
    """
    progress(0.0, "loading")
    module = load_for_compression(order)
    layers = [layer for block in blocks(module).values() for layer in linear_layers(block)]
    progress(0.2, f"pruning {len(layers)} linear layers")
    sparsify(layers, step)
    progress(0.8, "writing")
    save(module, order.source, order.destination)
    zeros, weights = _zeros(layers)
    everything = sum(parameter.numel() for parameter in module.parameters())
    return Outcome(
        order.quantization,
        [
            *notes_on(order.source),
            f"{zeros / weights:.1%} of the {weights:,} weights in linear layers are zero ({zeros / everything:.1%} of "
            f"all {everything:,} parameters). Dense kernels multiply by zeros too, and files hold them: the model "
            "became neither faster nor smaller.",
        ],
    )


@torch.no_grad()
def sparsify(layers: Sequence[torch.nn.Module], step: PruneMagnitude) -> None:
    """Zero the smallest weights of these layers, in place."""
    gone = 1 - (step.keep_ratio or 0)
    if step.threshold is not None:
        for layer in layers:
            _mask(layer, _weight(layer).abs() >= step.threshold)
    elif step.scope == "layer":
        for layer in layers:
            prune.l1_unstructured(layer, "weight", amount=gone)  # type: ignore[no-untyped-call]
            prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    else:
        # global_unstructured of torch puts all weights into one tensor, and their order, of 8 bytes each, into another.
        _zero_smallest(layers, round(sum(_weight(layer).numel() for layer in layers) * gone))


def kth_smallest(tensors: Sequence[torch.Tensor], k: int) -> tuple[float, int]:
    """The k-th smallest magnitude (from 1) of all tensors, exact, and how many are smaller than it.

    Floats without a sign are ordered as their bits are. So a histogram of the upper bits says which value these have,
    and one of the lower bits, of those that agree in the upper, the rest: two looks at each tensor and no copy of all.
    """
    found = 0
    smaller = 0
    for shift in (HALF, 0):
        counts = torch.zeros(1 << HALF, dtype=torch.int64)
        for tensor in tensors:
            bits = tensor.detach().abs().float().flatten().view(torch.int32).cpu()
            if not shift:
                bits = bits[(bits >> HALF) == found >> HALF]
            counts += torch.bincount((bits >> shift) & ((1 << HALF) - 1), minlength=1 << HALF)
        ranks = counts.cumsum(0)
        place = int(torch.searchsorted(ranks, k - smaller))
        smaller += int(ranks[place] - counts[place])
        found |= place << shift
    return float(torch.tensor(found, dtype=torch.int32).view(torch.float32)), smaller


def _zero_smallest(layers: Sequence[torch.nn.Module], count: int) -> None:
    """Exactly so many: of equal magnitudes, of which 16-bit weights have many, the first ones."""
    if not count:
        return
    threshold, smaller = kth_smallest([_weight(layer) for layer in layers], count)
    equal = count - smaller
    for layer in layers:
        magnitudes = _weight(layer).abs().float()
        at_threshold = magnitudes == threshold
        kept = magnitudes > threshold
        here = int(at_threshold.sum())
        if here > equal:
            kept |= at_threshold & (at_threshold.flatten().cumsum(0).view_as(at_threshold) > equal)
        equal -= min(here, equal)
        _mask(layer, kept)


def _mask(layer: torch.nn.Module, kept: torch.Tensor) -> None:
    prune.custom_from_mask(layer, "weight", kept)  # type: ignore[no-untyped-call]
    prune.remove(layer, "weight")  # type: ignore[no-untyped-call]


def _weight(layer: torch.nn.Module) -> torch.Tensor:
    weight: torch.Tensor = layer.get_parameter("weight")
    return weight


def _zeros(layers: Sequence[torch.nn.Module]) -> tuple[int, int]:
    """Weights that are zero, and all of them."""
    weights = [_weight(layer) for layer in layers]
    return sum(weight.numel() - int(weight.count_nonzero()) for weight in weights), sum(map(torch.numel, weights))
