"""A loop over a model on one device, no queue and no database: prints its speed, how busy the device was, and memory.

Arguments: `embed` or `generate`, a quantization, the folder of the weights, the device, seconds to measure for, and a
file of texts or of questions.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoModelForCausalLM

from benchmarks.raw_loop import BUDGETS, LIMIT, padded_batches
from benchmarks.watching import Watch, busy
from contracts.names import Quantization
from worker.loading import load_module, load_tokenizer, weight_bytes

GPU_BUDGETS = (4096, 16_384, 65_536)
ROWS = {"cpu": 8, "cuda": 64}
"""Chats of one batch."""
NEW_TOKENS = 64
TRIAL = 0.1
"""The share of the seconds that each size of a batch is tried for."""


def main() -> None:
    task, kind, folder, device, seconds, file = sys.argv[1:]
    heads = AutoModel if task == "embed" else AutoModelForCausalLM
    module: Any = load_module(Path(folder), Quantization(kind), device, heads)
    tokenizer: Any = load_tokenizer(Path(folder))
    texts = json.loads(Path(file).read_text())
    with torch.inference_mode():
        loop = _embed if task == "embed" else _generate
        rate, share = loop(module, tokenizer, texts, torch.device(device), float(seconds))
    print(json.dumps({"rate": rate, "busy": share, "weights": weight_bytes(module), "peak": _peak(device)}))


def sized(rate: float, seconds: float, least: int, most: int) -> int:
    """How many inputs take so many seconds at a rate, within bounds."""
    return int(min(max(rate * seconds, least), most))


def repeated(rows: list[Any], count: int) -> list[Any]:
    """So many of the rows, evenly from all of them, or all of them several times."""
    if count > len(rows):
        return (rows * -(-count // len(rows)))[:count]
    return [rows[place * len(rows) // count] for place in range(count)]


def _embed(module: Any, tokenizer: Any, texts: list[str], device: torch.device, seconds: float) -> tuple[float, float]:
    """Texts a second, tokenized and sorted beforehand, in the best size of a batch; and how busy the device was."""
    fast = tokenizer.backend_tokenizer
    fast.enable_truncation(LIMIT)
    fast.no_padding()
    rows = [encoding.ids for encoding in fast.encode_batch(texts)]
    budgets = BUDGETS if device.type == "cpu" else GPU_BUDGETS
    _rate(module, repeated(rows, 16), budgets[0], device)  # the first pass packs weights and chooses kernels
    first = _rate(module, repeated(rows, 64), budgets[0], device)
    sample = repeated(rows, sized(first, TRIAL * seconds, 32, 50_000))
    rates = {budget: _rate(module, sample, budget, device) for budget in budgets}
    best = max(rates, key=rates.__getitem__)
    some = repeated(rows, sized(rates[best], seconds, 64, 500_000))
    with Watch(str(device)) as watch:
        return _rate(module, some, best, device), busy(watch.looks[1:] or watch.looks)


def _rate(module: Any, rows: list[list[int]], budget: int, device: torch.device) -> float:
    """Rows a second; 0 where a batch finds no room."""
    batches = padded_batches(sorted(rows, key=len, reverse=True), budget)
    begin = time.perf_counter()
    try:
        # Brought over at the end: the device need not wait for one batch before it has the next.
        torch.cat([_vectors(module, ids, mask, device) for ids, mask in batches]).cpu()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return 0.0
    return len(rows) / (time.perf_counter() - begin)


def _vectors(module: Any, ids: torch.Tensor, mask: torch.Tensor, device: torch.device) -> torch.Tensor:
    # Without padding no mask: attention takes its fastest kernel then.
    full = bool(mask.all())
    ids, mask = ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
    hidden = module(input_ids=ids, attention_mask=None if full else mask, return_dict=True).last_hidden_state.float()
    weights = mask.unsqueeze(-1).float()
    return normalize((hidden * weights).sum(1) / weights.sum(1))


def _generate(
    module: Any, tokenizer: Any, questions: list[str], device: torch.device, seconds: float
) -> tuple[float, float]:
    """New tokens a second of `transformers.generate`, batch after batch; and how busy the device was."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    chats = [[{"role": "user", "content": text}] for text in repeated(questions, ROWS[device.type])]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    ).to(device)
    module.generate(**inputs, max_new_tokens=2, do_sample=False)
    done, begin = 0, time.perf_counter()
    with Watch(str(device)) as watch:
        while done == 0 or time.perf_counter() - begin < seconds:
            out = module.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            done += _new_tokens(out[:, inputs["input_ids"].shape[1] :], tokenizer.eos_token_id)
        return done / (time.perf_counter() - begin), busy(watch.looks[1:] or watch.looks)


def _new_tokens(new: torch.Tensor, end: int) -> int:
    """What follows the end of a text is padding, which nobody asked for."""
    ends = (new == end).int()
    return int(torch.where(ends.any(1), ends.argmax(1) + 1, new.shape[1]).sum())


def _peak(device: str) -> int:
    """The most bytes that tensors took on a GPU; on a CPU, that the process did, in kilobytes on Linux."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
