"""How far scores of quantized models are from those of float32, each on its own texts: a table.

    python -m benchmarks.tolerances [classify rerank] [--quantizations bf16 int8 nf4 fp4] [--count 200]

To measure another engine, add a function to MEASURED that gives its scores in a fixed order.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import heads
from benchmarks.specs import model_spec
from benchmarks.texts import stdlib_docstrings
from contracts.models import ModelSpec
from contracts.names import Task
from worker.engines.base import Engine
from worker.engines.classify import ClassifyEngine
from worker.engines.rerank import RerankEngine

QUANTIZATIONS = ["bf16", "int8", "nf4", "fp4"]
ROWS = 8
"""Inputs of a micro-batch."""


def classify_scores(quantization: str, count: int, folder: Path) -> NDArray[np.float64]:
    """The probability of each label, `[count, labels]`."""
    if not any(folder.iterdir()):
        heads.save_classifier(folder)
    outputs = _compute(ClassifyEngine.load(_spec(Task.CLASSIFY, quantization), folder, "cpu"), _texts(count))
    return np.array([[e["score"] for e in sorted(output, key=lambda e: str(e["label"]))] for output in outputs])


def rerank_scores(quantization: str, count: int, folder: Path) -> NDArray[np.float64]:
    """The score of each of `count` documents, four a query, `[count / 4, 4]`."""
    if not any(folder.iterdir()):
        heads.save_reranker(folder)
    texts = _texts(count)
    queries = [match.query for match in heads.held_back(heads.matches())]
    rankings = [
        {"query": query, "documents": texts[4 * i : 4 * i + 4]} for i, query in enumerate(queries[: count // 4])
    ]
    outputs = _compute(RerankEngine.load(_spec(Task.RERANK, quantization), folder, "cpu"), rankings)
    return np.array([[e["score"] for e in sorted(output, key=lambda e: int(e["index"]))] for output in outputs])


MEASURED: dict[str, Callable[[str, int, Path], NDArray[np.float64]]] = {
    "classify": classify_scores,
    "rerank": rerank_scores,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", default=list(MEASURED), help=", ".join(MEASURED))
    parser.add_argument("--quantizations", nargs="+", default=QUANTIZATIONS)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    print("| engine | quantization | mean | 99th percentile | largest | same best |")
    print("|---|---|---:|---:|---:|---:|")
    for engine in options.engines:
        with tempfile.TemporaryDirectory() as folder:
            exact = MEASURED[engine]("none", options.count, Path(folder))
            for quantization in options.quantizations:
                scores = MEASURED[engine](quantization, options.count, Path(folder))
                off = np.abs(scores - exact)
                same = (scores.argmax(-1) == exact.argmax(-1)).mean()
                figures = f"{off.mean():.4f} | {np.quantile(off, 0.99):.4f} | {off.max():.4f} | {same:.0%}"
                print(f"| `{engine}` | `{quantization}` | {figures} |", flush=True)


def _texts(count: int) -> list[str]:
    """Docstrings from all over the standard library, of any length."""
    texts = stdlib_docstrings()
    return texts[:: len(texts) // count][:count]


def _compute(engine: Engine, payloads: Sequence[Any]) -> list[Any]:
    """Outputs of micro-batches of inputs of similar length."""
    prepared = engine.prepare(payloads, {})
    order = np.argsort(prepared.lengths, kind="stable").tolist()
    outputs: list[Any] = [None] * len(payloads)
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        for place, output in zip(part, engine.run([prepared.rows[i] for i in part], {}), strict=True):
            outputs[place] = output
    return outputs


def _spec(task: Task, quantization: str) -> ModelSpec:
    return model_spec(task=task, quantization=quantization, engine=task)


if __name__ == "__main__":
    main()
