"""What each quantization buys and costs: bytes, memory, speed, and how far its outputs are from float32."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import alone, print_table
from benchmarks.plots import bars
from contracts.names import Quantization

# fp16 is for GPUs: a CPU takes for ever. Doubled scales change little here, and are unpacked at the first pass.
LEFT_OUT = (Quantization.FP16, Quantization.AUTO)
KINDS = [kind for kind in Quantization if kind not in LEFT_OUT and not kind.endswith("-double")]


def main() -> None:
    _minilm()
    _smollm2()


def _minilm() -> None:
    found, vectors = _measure("minilm")
    exact = vectors["none"]
    cosines = {kind: np.sum(exact * other, axis=1) for kind, other in vectors.items()}
    _show(
        "minilm",
        f"all-MiniLM-L6-v2: {len(exact):,} docstrings through the engine at its measured budget",
        "texts/s",
        found,
        {
            "mean cosine to fp32": {kind: f"{values.mean():.4f}" for kind, values in cosines.items()},
            "1st percentile": {kind: f"{np.percentile(values, 1):.4f}" for kind, values in cosines.items()},
        },
    )


def _smollm2() -> None:
    found, scores = _measure("smollm2")
    exact = scores["none"]
    changes = {kind: np.abs(other - exact) for kind, other in scores.items()}
    _show(
        "smollm2",
        f"SmolLM2-135M: eight chats of 64 new tokens, and the likelihood of {len(exact)} docstrings",
        "new tokens/s",
        found,
        {
            "mean NLL a token": {kind: f"{-values.mean():.3f}" for kind, values in scores.items()},
            "95th pct of |change|": {kind: f"{np.percentile(change, 95):.3f}" for kind, change in changes.items()},
        },
    )


def _show(
    name: str, title: str, rate: str, found: dict[str, dict[str, float]], fidelity: dict[str, dict[str, str]]
) -> None:
    """A table, and a plot of its bytes, its speed and the first of what says how good the outputs are."""
    print_table(
        title,
        ["quantization", "weights MB", "process MB", rate, "of none", *fidelity],
        [
            [*_costs(kind, facts, found), *(column[kind] for column in fidelity.values())]
            for kind, facts in found.items()
        ],
    )
    first = next(iter(fidelity))
    bars(
        f"quantizations-{name}",
        f"{title.partition(':')[0]} by quantization",
        {
            "weights, MB": {kind: facts["weights"] / 1e6 for kind, facts in found.items()},
            rate: {kind: facts["rate"] for kind, facts in found.items()},
            first: {kind: float(value) for kind, value in fidelity[first].items()},
        },
    )


def _measure(model: str) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Facts and outputs by quantization, each measured in a process of its own."""
    found, outputs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            file = Path(folder) / f"{kind}.npy"
            found[str(kind)] = json.loads(alone("one_quantization", model, kind, str(file)))
            outputs[str(kind)] = np.load(file)
    return found, outputs


def _costs(kind: str, facts: dict[str, float], found: dict[str, dict[str, float]]) -> list[str]:
    ratio = facts["rate"] / found["none"]["rate"]
    return [
        kind,
        f"{facts['weights'] / 1e6:.1f}",
        f"{facts['process'] / 1e6:,.0f}",
        f"{facts['rate']:,.0f}",
        f"{ratio:.2f}",
    ]


if __name__ == "__main__":
    main()
