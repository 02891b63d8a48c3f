"""One model in one quantization: prints its bytes and its speed, and keeps its outputs for others to compare."""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generation import QUESTIONS
from benchmarks.specs import model_spec
from benchmarks.texts import stdlib_docstrings
from benchmarks.weights import MINILM, SMOLLM2
from contracts.names import Quantization, Task
from contracts.params import parse_params
from worker import budget
from worker.batcher import Block, MicroBatcher
from worker.engines.base import Engine
from worker.engines.registry import engine_class

EMBEDDED, SCORED = 1_000, 50
"""Docstrings."""
NEW_TOKENS = 64


def main() -> None:
    model, kind, file = sys.argv[1], Quantization(sys.argv[2]), sys.argv[3]
    outputs, rate, weights = (_minilm if model == "minilm" else _smollm2)(kind)
    np.save(file, outputs)
    # In kilobytes, on Linux.
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"rate": rate, "weights": weights, "process": process}))


def _minilm(kind: Quantization) -> tuple[Any, float, int]:
    """Vectors `[n, 384]`, texts a second, and bytes of the weights."""
    engine = _load(Task.EMBED, kind, MINILM)
    texts = sorted(set(stdlib_docstrings()))[::6][:EMBEDDED]
    tokens = budget.measure(engine, parse_params(Task.EMBED, {})).tokens
    outputs, seconds = _run(engine, Task.EMBED, texts, tokens)
    return np.array(outputs), len(texts) / seconds, engine.memory_bytes


def _smollm2(kind: Quantization) -> tuple[Any, float, int]:
    """Mean log-likelihoods `[n]`, new tokens a second, and bytes of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SMOLLM2.name).symlink_to(SMOLLM2)
        generating = _load(Task.GENERATE, kind, Path(folder))
        chats = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
        _run(generating, Task.GENERATE, chats[:1], 10_000, max_new_tokens=2)
        texts, seconds = _run(generating, Task.GENERATE, chats, 10_000, max_new_tokens=NEW_TOKENS)
        rate = sum(text["new_tokens"] for text in texts) / seconds
        weights = generating.memory_bytes
        del generating
        scoring = _load(Task.SCORE, kind, Path(folder))
    scored, _ = _run(scoring, Task.SCORE, stdlib_docstrings()[::140][:SCORED], 1_024)
    return np.array([score["log_likelihood"] / score["tokens"] for score in scored]), rate, weights


def _load(task: Task, kind: Quantization, folder: Path) -> Engine:
    spec = model_spec(source=str(folder), task=task, quantization=kind, engine=task)
    return engine_class(task).load(spec, folder, "cpu")


def _run(engine: Engine, task: Task, payloads: Sequence[Any], tokens: int, **changes: Any) -> tuple[list[Any], float]:
    """Outputs in the order of the payloads, and the seconds of the passes alone."""
    params = parse_params(task, changes)
    prepared = engine.prepare(payloads, params)
    assert not prepared.errors, prepared.errors
    batcher = MicroBatcher()
    batcher.set_budget("", tokens)
    batcher.add(Block("", 0, prepared.lengths), 0.0)
    outputs: list[Any] = [None] * len(payloads)
    begin = time.perf_counter()
    while (batch := batcher.next(1.0)) is not None:
        places = batch.parts[0].rows.tolist()
        found = engine.run([prepared.rows[place] for place in places], params)
        for place, output in zip(places, found, strict=True):
            outputs[place] = output
    return outputs, time.perf_counter() - begin


if __name__ == "__main__":
    main()
