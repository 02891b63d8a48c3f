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
KINDS = [kind for kind in Quantization if kind is not Quantization.FP16 and not kind.endswith("-double")]


def main() -> None:
    _minilm()
    _smollm2()


def _minilm() -> None:
    found, vectors = _measure("minilm")
    exact = vectors["none"]
    cosines = {kind: np.sum(exact * other, axis=1) for kind, other in vectors.items()}
    print_table(
        f"all-MiniLM-L6-v2: {len(exact):,} docstrings through the engine at its measured budget",
        ["quantization", "weights MB", "process MB", "texts/s", "of none", "cosine to fp32: mean", "1st percentile"],
        [
            [
                *_costs(kind, facts, found),
                f"{cosines[kind].mean():.4f}",
                f"{np.percentile(cosines[kind], 1):.4f}",
            ]
            for kind, facts in found.items()
        ],
    )
    bars(
        "quantizations-minilm",
        "all-MiniLM-L6-v2 by quantization",
        {
            "weights, MB": {kind: facts["weights"] / 1e6 for kind, facts in found.items()},
            "texts/s": {kind: facts["rate"] for kind, facts in found.items()},
            "mean cosine to fp32": {kind: float(values.mean()) for kind, values in cosines.items()},
        },
    )


def _smollm2() -> None:
    found, scores = _measure("smollm2")
    exact = scores["none"]
    changes = {kind: other - exact for kind, other in scores.items()}
    print_table(
        f"SmolLM2-135M: eight chats of 64 new tokens, and the likelihood of {len(exact)} docstrings",
        [
            "quantization",
            "weights MB",
            "process MB",
            "new tokens/s",
            "of none",
            "NLL a token: mean",
            "change",
            "95th pct of |change|",
        ],
        [
            [
                *_costs(kind, facts, found),
                f"{-scores[kind].mean():.3f}",
                f"{-changes[kind].mean():+.3f}",
                f"{np.percentile(np.abs(changes[kind]), 95):.3f}",
            ]
            for kind, facts in found.items()
        ],
    )
    bars(
        "quantizations-smollm2",
        "SmolLM2-135M by quantization",
        {
            "weights, MB": {kind: facts["weights"] / 1e6 for kind, facts in found.items()},
            "new tokens/s": {kind: facts["rate"] for kind, facts in found.items()},
            "mean NLL a token": {kind: float(-values.mean()) for kind, values in scores.items()},
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
