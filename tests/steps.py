"""Steps of recipes run on folders, and what they leave, looked at as engines see it."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from contracts.names import Quantization, Task
from contracts.recipes import parse_recipe
from worker.compression.artifacts import KINDS, transformer_folder
from worker.compression.order import Order, Outcome
from worker.compression.steps import magnitude, quantization, structured
from worker.loading import load_module

RUNS: dict[tuple[str, str], Any] = {
    ("prune", "magnitude"): magnitude.run,
    ("prune", "structured"): structured.run,
}


def run_step(
    step: dict[str, Any],
    source: Path,
    destination: Path,
    task: Task = Task.EMBED,
    held: Quantization = Quantization.NONE,
) -> Outcome:
    """Run one step of torch's on a folder; what it says of its progress has to make sense."""
    [parsed] = parse_recipe([step], held)
    destination.mkdir()
    order = Order(task, source, held, source, destination, destination.parent / "scratch")
    told: list[float] = []
    run = RUNS.get((step["step"], step["method"]), quantization.run)
    outcome: Outcome = run(parsed, order, lambda fraction, words: told.append(fraction))
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] <= 1
    return outcome


def digest(folder: Path) -> str:
    """Over all files, their names included."""
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(str(file.relative_to(folder)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def loaded(folder: Path, task: Task = Task.EMBED, held: Quantization = Quantization.NONE) -> Any:
    return load_module(transformer_folder(folder), held, "cpu", KINDS[task])


def outputs(module: Any, rows: int = 4, tokens: int = 12) -> torch.Tensor:
    """Of made-up texts of several lengths, without padding: `[tokens, d]`, or `[rows, d]` of classifiers."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, module.config.vocab_size, (rows, tokens), generator=generator)
    mask = (torch.arange(tokens) < torch.arange(tokens - rows + 1, tokens + 1)[:, None]).long()
    with torch.inference_mode():
        found: torch.Tensor = module(input_ids=ids, attention_mask=mask, return_dict=True)[0].float()
    return found[mask.bool()] if found.dim() == 3 else found
