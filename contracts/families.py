"""Families of transformers whose feed-forward neurons and attention heads are known by name: pure data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Where models of the same make have their parts."""

    layers: str
    """In the base model, its layers; all other paths are in a layer."""
    heads: tuple[str, str, str]
    """Queries, keys and values: rows of weights belong to heads."""
    heads_out: str
    """What takes the heads' results: columns belong to heads."""
    neurons: tuple[str, ...]
    """The feed-forward network's way in: rows belong to neurons."""
    neurons_out: str
    """Its way out: columns belong to neurons."""
    intermediate_size: str = "intermediate_size"
    """The key of `config.json` that says how many neurons there are."""


_BERT = Family(
    "encoder.layer",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    ("intermediate.dense",),
    "output.dense",
)
_DISTILBERT = Family(
    "transformer.layer",
    ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "attention.out_lin",
    ("ffn.lin1",),
    "ffn.lin2",
    "hidden_dim",
)
_LLAMA = Family(
    "layers",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj",
    ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj",
)
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": _DISTILBERT,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}
"""By the `model_type` of `config.json`."""


def known_families() -> str:
    """Which models can have fewer heads and neurons, for an error."""
    return f"only {', '.join(sorted(FAMILIES))} can be pruned to smaller shapes"
