"""Loops over the same weights with no queue and no database; prints texts a second of the kind that is named.

`sentence-transformers-fp32` and `-bf16` take the docstrings of the standard library; a quantization is followed by the
folder of the weights, or of the graph, and by a file of texts.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks.texts import stdlib_docstrings
from benchmarks.weights import MINILM
from contracts.names import Quantization
from worker.lanes import Lanes
from worker.loading import load_model, load_tokenizer
from worker.variants import plain

LIMIT = 256
BUDGETS = (512, 1024, 1536, 2048, 3072, 4096)


def main() -> None:
    kind, *files = sys.argv[1:]
    if files:
        folder, texts = map(Path, files)
        print(json.dumps(_loop(folder, Quantization(kind), json.loads(texts.read_text()))))
    else:
        strings = sorted(set(stdlib_docstrings()))
        print(_sentence_transformers(strings, torch.bfloat16 if kind.endswith("bf16") else torch.float32))


def _loop(folder: Path, quantization: Quantization, texts: list[str]) -> dict[str, float]:
    """Texts a second of one pass at a time, and of a pass a core side by side.

    Everything but the model's own work is done beforehand; the best budget is sought on some of the texts.
    """
    tokenizer = load_tokenizer(folder).backend_tokenizer
    tokenizer.enable_truncation(LIMIT)
    tokenizer.no_padding()
    rows = sorted((encoding.ids for encoding in tokenizer.encode_batch(texts)), key=len, reverse=True)
    sample = rows[:: max(len(rows) // 500, 1)]
    cores = torch.get_num_threads()
    single = _best(folder, quantization, rows, sample, Lanes(1, cores, torch.set_num_threads), cores)
    with Lanes(cores, 1, torch.set_num_threads) as several:
        side_by_side = _best(folder, quantization, rows, sample, several, 1)
    return {"rate": single, "lanes": side_by_side, "seconds": len(rows) / single + len(rows) / side_by_side}


def _best(
    folder: Path, quantization: Quantization, rows: list[Any], sample: list[Any], lanes: Lanes, threads: int
) -> float:
    """Texts a second in so many lanes, in batches of the best size."""
    variant = replace(plain(quantization), lanes=lanes.count, threads=threads)
    module = load_model(folder, variant, "cpu")

    def run(chosen: list[Any], budget: int) -> None:
        lanes.run(lambda batch: _run(module, batch), padded_batches(chosen, budget))

    run(sample, 2048)
    best = max(BUDGETS, key=lambda budget: _rate(lambda: run(sample, budget), len(sample)))
    batches = padded_batches(rows, best)
    return _rate(lambda: lanes.run(lambda batch: _run(module, batch), batches), len(rows))


def padded_batches(rows: list[list[int]], budget: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and masks of rows that are sorted by length, so many padded tokens a batch."""
    batches, start = [], 0
    while start < len(rows):
        longest = len(rows[start])
        chosen = rows[start : start + max(budget // longest, 1)]
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in chosen])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in chosen])
        batches.append((ids, mask))
        start += len(chosen)
    return batches


@torch.inference_mode()
def _run(module: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids, mask = batch
    # Without padding no mask: attention takes its fastest kernel then.
    padded = None if mask.all() else mask
    hidden = module(input_ids=ids, attention_mask=padded, return_dict=True).last_hidden_state.float()
    weights = mask.unsqueeze(-1).float()
    normalize((hidden * weights).sum(1) / weights.sum(1)).numpy()


def _sentence_transformers(texts: list[str], dtype: torch.dtype) -> float:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(MINILM), device="cpu", model_kwargs={"dtype": dtype})
    model.encode(texts[:32])
    sample = texts[::4]
    return _rate(lambda: model.encode(sample), len(sample))


def _rate(function: Callable[[], object], count: float) -> float:
    begin = time.perf_counter()
    function()
    return count / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
