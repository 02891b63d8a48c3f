"""`make gpu`: two models in five quantizations on one device, raw and through the whole path, within a time.

`python -m benchmarks.gpu --device cpu --seconds 300 minilm-bf16` measures one pair on processors.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.generation import QUESTIONS
from benchmarks.harness import console, print_table, stack
from benchmarks.texts import stdlib_docstrings
from benchmarks.watching import Watch, busy, peak
from benchmarks.weights import MINILM, SMOLLM2
from contracts.errors import describe
from producer import Client

KINDS = ("none", "bf16", "fp16", "nf4", "int8")
NEW_TOKENS = 64
LEAST = 15.0
"""A pair is not begun with fewer seconds left: its processes take as long to start."""
AT_WORK = 0.12
"""The share of a pair's time that the raw loop runs for, and that the whole path is to take."""
MOST = 200_000
HEADER = [
    *("model", "raw /s", "path /s", "path of raw", "busy: raw, path"),
    *("reckoned MB", "weights MB", "peak MB: raw, path"),
]


class Share(NamedTuple):
    """The time of one pair, in seconds."""

    work: float
    """For each of the two measurements."""
    limit: float
    """When what still runs is ended: what a pair leaves is for those after it, and one may take more than its part."""


@dataclass
class Row:
    """What was found of a pair, as far as it went."""

    task: str
    raw: dict[str, float] = field(default_factory=dict)
    rate: float = math.nan
    busy: float = math.nan
    reckoned: float = math.nan
    peak: float = math.nan
    errors: list[str] = field(default_factory=list)


def main() -> None:
    """Print the table, whatever ends the run, and end with 1 where a pair failed."""
    pairs = [f"{model}-{kind}" for kind in KINDS for model in ("minilm", "smollm2")]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("pairs", nargs="*", help="those to measure; all ten by default")
    parser.add_argument("--device", default="cuda:0", help="cuda:0 by default, or cpu")
    parser.add_argument("--seconds", type=float, default=400.0, help="for all pairs together; 400 by default")
    options = parser.parse_args()
    if unknown := set(options.pairs) - set(pairs):
        parser.error(f"{', '.join(sorted(unknown))}: a pair is one of {', '.join(pairs)}")
    if options.device != "cpu" and shutil.which("nvidia-smi") is None:
        sys.exit("nvidia-smi is not here, and it tells how busy a GPU is: --device cpu measures on processors")
    end = time.monotonic() + options.seconds
    console.width = 150  # room for errors
    rows: dict[str, Row] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="bm-gpu-") as folder:
            _measure_all(options.pairs or pairs, options.device, Path(folder), end, rows)
    finally:
        _show(options.device, rows)
    sys.exit(any(row.errors for row in rows.values()))


def divided(left: float, pairs: int) -> Share:
    """The time of the next of so many pairs, where so many seconds are left for them all."""
    part = max(left, 0.0) / pairs
    return Share(AT_WORK * part, min(left, 2 * part))


def sized(rate: float, seconds: float, least: int) -> int:
    """How many inputs take so many seconds at a rate, within bounds; the least where the rate is not known."""
    return least if math.isnan(rate) else int(min(max(rate * seconds, least), MOST))


def distinct(texts: Sequence[str], count: int) -> list[str]:
    """So many texts, each another: from the second time on they end in a number, as each is computed only once."""
    rounds = -(-count // len(texts))
    return [text if number == 0 else f"{text} {number}" for number in range(rounds) for text in texts][:count]


def _measure_all(pairs: Sequence[str], device: str, folder: Path, end: float, rows: dict[str, Row]) -> None:
    texts = sorted(set(stdlib_docstrings()))
    (folder / "embed.json").write_text(json.dumps(texts[:: max(len(texts) // 2000, 1)]))
    (folder / "generate.json").write_text(json.dumps(QUESTIONS))
    for place, pair in enumerate(pairs):
        model, _, kind = pair.partition("-")
        row = rows[pair] = Row("embed" if model == "minilm" else "generate")
        share = divided(end - time.monotonic(), len(pairs) - place)
        begin = time.monotonic()
        if share.limit < LEAST:
            row.errors.append("no time was left")
            continue
        until = begin + share.limit
        weights = _tried(row, "weights", _weights, model, folder)
        if weights is not None:
            _tried(row, "raw", _raw, row, kind, weights, device, folder, share.work, until)
            _tried(row, "path", _path, row, kind, weights, device, texts, share.work, until)
        console.print(f"{pair}: {time.monotonic() - begin:.0f} s", *row.errors, markup=False)


def _tried(row: Row, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives; None where it fails, and the row says why."""
    try:
        return function(*arguments)
    except subprocess.TimeoutExpired as error:
        row.errors.append(f"{part}: ended after {error.timeout:.0f} s")
    except Exception as error:  # whatever fails, the others are measured
        row.errors.append(f"{part}: {describe(error)}"[:200])
    return None


def _weights(model: str, folder: Path) -> Path:
    """The folder of the model; the GGUF file is unpacked once, since that takes longer than all else."""
    if model == "minilm":
        return MINILM
    unpacked = folder / "smollm2"
    if not (unpacked / "config.json").exists():
        _unpack(unpacked)
    return unpacked


def _unpack(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    from contracts.names import Quantization
    from worker.loading import load_module, load_tokenizer

    load_tokenizer(SMOLLM2.parent).save_pretrained(folder)
    load_module(SMOLLM2.parent, Quantization.BF16, "cpu", AutoModelForCausalLM).save_pretrained(folder)


def _raw(row: Row, kind: str, weights: Path, device: str, folder: Path, work: float, until: float) -> None:
    """The loop, in a process of its own, which takes half of the time at most."""
    command = [sys.executable, "-m", "benchmarks.raw_device", row.task, kind, str(weights), device, f"{work:.1f}"]
    done = subprocess.run(
        [*command, str(folder / f"{row.task}.json")],
        capture_output=True,
        text=True,
        timeout=_left(until) / 2,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1])
    row.raw = json.loads(done.stdout.splitlines()[-1])


def _path(row: Row, kind: str, weights: Path, device: str, texts: list[str], work: float, until: float) -> None:
    """From the submission to all results read, by a stack whose worker has this model alone."""
    _left(until)
    with Watch(device) as watch, stack(device=device) as client:
        spec = client.models.add("model", str(weights), task=row.task, quantization=kind)
        row.reckoned = spec.memory_bytes
        _submit(client, row.task, texts, 4, until)  # loads the model and measures its plan
        client.models.invalidate(spec.reference)
        count = _count(row, device, work)
        first, begin = len(watch.looks), time.perf_counter()
        done = _submit(client, row.task, texts, count, until)
        row.rate = done / (time.perf_counter() - begin)
        row.busy, row.peak = busy(watch.looks[first:]), peak(watch.looks)


def _left(until: float) -> float:
    """Seconds up to then, where that is enough to start something."""
    left = until - time.monotonic()
    if left < LEAST:
        raise TimeoutError(f"only {max(left, 0):.0f} s were left")
    return left


def _count(row: Row, device: str, work: float) -> int:
    """How many inputs the path is given: as many as the loop would compute in the time."""
    rate = row.raw.get("rate", math.nan)
    if row.task == "embed":
        return sized(rate, work, 64)
    return sized(rate / NEW_TOKENS, work, 8 if device == "cpu" else 64)


def _submit(client: Client, task: str, texts: list[str], count: int, until: float) -> int:
    """Texts computed, or new tokens."""
    params: dict[str, Any] = {} if task == "embed" else {"max_new_tokens": NEW_TOKENS}
    inputs: list[Any] = distinct(texts if task == "embed" else QUESTIONS, count)
    if task == "generate":
        inputs = [{"messages": [{"role": "user", "content": text}]} for text in inputs]
    job = client.submit("model", inputs, params=params).wait(max(until - time.monotonic(), 1))
    outputs = [result.output for result in job.results() if result.error is None]
    if (len(outputs), job.counts.computed) != (count, count):
        errors = {str(result.error) for result in job.results() if result.error is not None}
        raise AssertionError(f"{len(outputs)} of {count} outputs, {job.counts} {' '.join(sorted(errors))}")
    return count if task == "embed" else sum(int(output["new_tokens"]) for output in outputs)


def _show(device: str, rows: dict[str, Row]) -> None:
    """The table, one model after the other; where something failed, with the errors as its last column."""
    ordered = sorted(rows.items(), key=lambda one: one[0].partition("-")[0])
    failed = any(row.errors for row in rows.values())
    print_table(
        f"{_name(device)}: texts (MiniLM) and new tokens (SmolLM2) a second; memory is reckoned of weights alone",
        [*HEADER, *(["error"] if failed else [])],
        [[pair, *_cells(row), *(["; ".join(row.errors)] if failed else [])] for pair, row in ordered],
    )


def _cells(row: Row) -> list[str]:
    raw = {name: row.raw.get(name, math.nan) for name in ("rate", "busy", "weights", "peak")}
    return [
        _number(raw["rate"], ",.0f"),
        _number(row.rate, ",.0f"),
        _number(row.rate / raw["rate"] if raw["rate"] else math.nan, ".2f"),
        f"{_number(raw['busy'], '.0%')}, {_number(row.busy, '.0%')}",
        _number(row.reckoned / 1e6, ",.1f"),
        _number(raw["weights"] / 1e6, ",.1f"),
        f"{_number(raw['peak'] / 1e6, ',.0f')}, {_number(row.peak / 1e6, ',.0f')}",
    ]


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _name(device: str) -> str:
    if device == "cpu":
        return "the CPU"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    found = subprocess.run([*query, f"--id={device.partition(':')[2] or 0}"], capture_output=True, text=True)
    return found.stdout.strip() or device


if __name__ == "__main__":
    main()
