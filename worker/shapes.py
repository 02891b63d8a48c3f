"""Transformers with fewer attention heads than their hidden size is divided into: what pruning leaves.

The size of a head follows from `hidden_size` and `num_attention_heads` of `config.json`, so that these stay what they
were, and `kept_head_groups` says how many are left. No code comes from a model's folder.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _get_model_class
from transformers.pytorch_utils import prune_linear_layer

from contracts.errors import ModelLoadFailed
from contracts.families import FAMILIES, Family, known_families

KEPT_HEAD_GROUPS = "kept_head_groups"
"""The key of `config.json`: groups of heads in each layer; a group shares its keys and values, often one head."""


def layers_of(module: PreTrainedModel, family: Family) -> list[torch.nn.Module]:
    """The layers of a model, first to last."""
    return list(module.base_model.get_submodule(family.layers).children())


def head_groups(config: PretrainedConfig) -> int:
    """Groups of heads that each layer has now."""
    return int(getattr(config, KEPT_HEAD_GROUPS, None) or _whole_groups(config))


def heads_a_group(config: PretrainedConfig) -> int:
    """Heads that share their keys and values."""
    return int(config.num_attention_heads) // _whole_groups(config)


def keep_heads(layer: torch.nn.Module, family: Family, groups: int, kept: torch.Tensor) -> None:
    """Leave these of the layer's groups of heads, ascending, and none of the others."""
    for path in family.heads:
        _keep(layer, path, 0, groups, kept)
    _keep(layer, family.heads_out, 1, groups, kept)


def keep_neurons(layer: torch.nn.Module, family: Family, kept: torch.Tensor) -> None:
    """Leave these of the layer's feed-forward neurons, ascending, and none of the others."""
    for path in family.neurons:
        _keep(layer, path, 0, None, kept)
    _keep(layer, family.neurons_out, 1, None, kept)


def shaped(kind: type[_BaseAutoModelClass], config: PretrainedConfig) -> type[Any]:
    """What loads a model of this config: the kind, or a class of the same name with the heads that are left.

    Raises:
        ModelLoadFailed: The config asks for heads that the model cannot have.
    """
    kept = getattr(config, KEPT_HEAD_GROUPS, None)
    if kept is None:
        return kind
    if config.model_type not in FAMILIES:
        raise ModelLoadFailed(f"config.json: {config.model_type} has no {KEPT_HEAD_GROUPS}; {known_families()}")
    whole = _whole_groups(config)
    if not isinstance(kept, int) or not 0 < kept <= whole:
        raise ModelLoadFailed(f"config.json: {KEPT_HEAD_GROUPS} {kept!r} is not a number from 1 to {whole}")
    return _with_fewer_heads(_get_model_class(config, kind._model_mapping))  # type: ignore[no-untyped-call]


def _whole_groups(config: PretrainedConfig) -> int:
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


@cache
def _with_fewer_heads(whole: type[PreTrainedModel]) -> type[PreTrainedModel]:
    build: Callable[..., None] = whole.__init__

    def __init__(self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        build(self, config, *args, **kwargs)
        family = FAMILIES[config.model_type]
        for layer in layers_of(self, family):
            keep_heads(layer, family, _whole_groups(config), torch.arange(head_groups(config)))

    # The library writes the name of the class into config.json.
    return type(whole.__name__, (whole,), {"__init__": __init__, "__module__": whole.__module__})


def _keep(layer: torch.nn.Module, path: str, dim: int, groups: int | None, kept: torch.Tensor) -> None:
    """Cut a linear layer to the rows (dim 0) or columns (1) of what is kept."""
    whole: Any = layer.get_submodule(path)
    width = 1 if groups is None else whole.weight.shape[dim] // groups
    index = (kept[:, None] * width + torch.arange(width, device=kept.device)).flatten()
    with torch.no_grad():
        cut = prune_linear_layer(whole, cast("torch.LongTensor", index), dim).to(whole.weight.dtype)
    layer.set_submodule(path, cut.requires_grad_(whole.weight.requires_grad).train(whole.training))
