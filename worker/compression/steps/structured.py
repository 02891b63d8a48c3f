"""Structured pruning: whole feed-forward neurons and attention heads go, and the model becomes smaller and faster."""

from collections.abc import Sequence
from math import gcd, lcm

import torch
from transformers import PretrainedConfig, PreTrainedModel

from contracts.errors import CompressionFailed
from contracts.families import FAMILIES, Family, known_families
from contracts.recipes import PruneStructured
from worker.compression.artifacts import load_for_compression, notes_on, save
from worker.compression.order import Order, Outcome, Progress
from worker.shapes import KEPT_HEAD_GROUPS, head_groups, heads_a_group, keep_heads, keep_neurons, layers_of

ROWS, COLUMNS = 32, 64
"""Sizes stay multiples of these where they are: kernels of 4-bit layers take no others."""


def run(step: PruneStructured, order: Order, progress: Progress) -> Outcome:
    """Remove the neurons and heads with the smallest norms, the same number in each layer.

    Heads that share keys and values stand or fall together, so that those that are left are grouped as before.

    Raises:
        CompressionFailed: The model is of a family whose parts are not known.
        ModelLoadFailed: The source could not be loaded, or is quantized.
    """
    progress(0.0, "loading")
    module = load_for_compression(order)
    family = family_of(module.config)
    layers = layers_of(module, family)
    before = _parameters(layers)
    neurons, groups = _neurons(layers[0], family), head_groups(module.config)
    kept_neurons, kept_groups = kept_counts(module, family, step)
    for number, layer in enumerate(layers):
        progress(0.2 + 0.6 * number / len(layers), f"pruning layer {number + 1} of {len(layers)}")
        prune_layer(layer, family, step, groups, (kept_neurons, kept_groups))
    setattr(module.config, family.intermediate_size, kept_neurons)
    if kept_groups < groups:
        setattr(module.config, KEPT_HEAD_GROUPS, kept_groups)
    progress(0.8, "writing")
    save(module, order.source, order.destination)
    heads = heads_a_group(module.config)
    return Outcome(
        order.quantization,
        [
            *notes_on(order.source),
            f"Each of {len(layers)} layers keeps {kept_neurons:,} of {neurons:,} feed-forward neurons and "
            f"{kept_groups * heads} of {groups * heads} attention heads; of the layers' {before:,} parameters "
            f"{_parameters(layers):,} are left ({_parameters(layers) / before:.1%}).",
        ],
    )


def family_of(config: PretrainedConfig) -> Family:
    """Where models of this kind have their parts.

    Raises:
        CompressionFailed: That is not known.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise CompressionFailed(f"prune (structured): {config.model_type} is not known; {known_families()}")
    return family


def kept_counts(module: PreTrainedModel, family: Family, step: PruneStructured) -> tuple[int, int]:
    """Neurons and groups of heads that stay in each layer; a part that is not pruned stays whole."""
    layer = layers_of(module, family)[0]
    neurons, groups = _neurons(layer, family), head_groups(module.config)
    # What a group has: rows of keys and values, and columns of the way out.
    rows = _weight(layer, family.heads[1]).shape[0] // groups
    columns = _weight(layer, family.heads_out).shape[1] // groups
    unit = lcm(ROWS // gcd(ROWS, rows), COLUMNS // gcd(COLUMNS, columns))
    kept_neurons = _kept(neurons, step.keep_ratio, lcm(ROWS, COLUMNS)) if "neurons" in step.parts else neurons
    kept_groups = _kept(groups, step.keep_ratio, unit) if "heads" in step.parts else groups
    return kept_neurons, kept_groups


def prune_layer(
    layer: torch.nn.Module, family: Family, step: PruneStructured, groups: int, kept: tuple[int, int]
) -> None:
    """Cut a layer to so many neurons and groups of heads, in place.

    The norm of a neuron or head is that of all weights that lead into it or out of it.
    """
    neurons, heads = kept
    if neurons < _neurons(layer, family):
        norms = _norms(layer, family.neurons, family.neurons_out, _neurons(layer, family), step.norm)
        keep_neurons(layer, family, _largest(norms, neurons))
    if heads < groups:
        norms = _norms(layer, family.heads, family.heads_out, groups, step.norm)
        keep_heads(layer, family, groups, _largest(norms, heads))


def _neurons(layer: torch.nn.Module, family: Family) -> int:
    return _weight(layer, family.neurons_out).shape[1]


def _weight(layer: torch.nn.Module, path: str) -> torch.Tensor:
    weight: torch.Tensor = layer.get_parameter(f"{path}.weight")
    return weight


def _kept(count: int, ratio: float, unit: int) -> int:
    """The nearest multiple of the unit to the share, where the count is one of several; else the nearest number."""
    unit = unit if count % unit == 0 and count > unit else 1
    return max(int(count * ratio / unit + 0.5), 1) * unit


@torch.no_grad()
def _norms(layer: torch.nn.Module, ways_in: Sequence[str], way_out: str, parts: int, norm: str) -> torch.Tensor:
    """Of each part that rows of the ways in and columns of the way out belong to, `[parts]`."""
    matrices = [*(_weight(layer, path) for path in ways_in), _weight(layer, way_out).T]
    order = 1 if norm == "l1" else 2
    vector_norm = torch.linalg.vector_norm
    each = [vector_norm(matrix.double().reshape(parts, -1), order, dim=1) for matrix in matrices]
    norms: torch.Tensor = vector_norm(torch.stack(each), order, dim=0)
    return norms


def _largest(norms: torch.Tensor, count: int) -> torch.Tensor:
    """Their places, ascending; of equal norms the first stay."""
    return norms.sort(descending=True, stable=True).indices[:count].sort().values


def _parameters(layers: Sequence[torch.nn.Module]) -> int:
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())
