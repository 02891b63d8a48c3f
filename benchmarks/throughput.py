"""Real weights: docstrings through MiniLM, end to end, beside the fastest loop over the same weights."""

import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import REPETITIONS, alone, console, median, print_table, spread, stack
from benchmarks.texts import mixed_docstrings
from benchmarks.weights import MINILM
from contracts.models import ModelSpec
from contracts.settings import Settings
from producer import Client
from storage.artifacts import ArtifactStore

COUNTS = {"none": 10_000, "nf4": 10_000, "ONNX int8": 16_000}
"""Texts for each model: a pair is to take two minutes at least."""
PATIENCE = 3600


class Pair(NamedTuple):
    """One run of each, one after the other, in texts a second."""

    loop: float
    """One pass at a time."""
    lanes: float
    """A pass a core, side by side."""
    path: float
    seconds: float
    """What both took."""


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory(prefix="bm-loop-") as name, stack() as client:
        for kind, spec in _models(client).items():
            rows += _rows(kind, _pairs(client, kind, spec, Path(name)))
    print_table(
        f"throughput: docstrings through all-MiniLM-L6-v2, {REPETITIONS} interleaved pairs each",
        ["path", "texts/s: median (range)", "of one pass: median (range)", "of lanes: median (range)", "asked"],
        rows,
    )


def _models(client: Client) -> dict[str, ModelSpec]:
    client.models.add("minilm", str(MINILM))
    recipe = [{"step": "export", "format": "onnx"}, {"step": "quantize", "method": "int8"}]
    job = client.compress("minilm", recipe, name="graph").wait(PATIENCE)
    return {
        "none": client.models.get("minilm"),
        "nf4": client.models.add("packed", str(MINILM), quantization="nf4"),
        "ONNX int8": client.models.get(job.model),
    }


def _pairs(client: Client, kind: str, spec: ModelSpec, folder: Path) -> list[Pair]:
    texts = mixed_docstrings(COUNTS[kind])
    file = folder / "texts.json"
    file.write_text(json.dumps(texts))
    store = ArtifactStore(Settings(home=client.settings.home).artifacts_url)
    weights = store.fetch(spec.files, folder) if kind == "ONNX int8" else MINILM
    client.submit(spec.reference, texts[:64]).wait(PATIENCE)  # loads the model and measures its budget
    pairs = []
    for _ in range(REPETITIONS):
        begin = time.perf_counter()
        loop = json.loads(alone("raw_loop", spec.quantization, str(weights), str(file)))
        path = _end_to_end(client, spec, texts)
        pairs.append(Pair(loop["rate"], loop["lanes"], path, loop["seconds"] + len(texts) / path))
        console.print(kind, pairs[-1], f"{pairs[-1].path / pairs[-1].loop:.3f}", f"{time.perf_counter() - begin:.0f} s")
    return pairs


def _end_to_end(client: Client, spec: ModelSpec, texts: list[str]) -> float:
    client.models.invalidate(spec.reference)  # a new epoch: everything is computed again
    begin = time.perf_counter()
    job = client.submit(spec.reference, texts).wait(PATIENCE)
    read = sum(result.output.shape == (384,) for result in job.results())
    seconds = time.perf_counter() - begin
    if (read, job.counts.computed) != (len(texts), len(texts)):
        raise AssertionError(f"read {read} of {len(texts)}, {job.counts}")
    return len(texts) / seconds


def _rows(kind: str, pairs: list[Pair]) -> list[list[str]]:
    loops, paths = [pair.loop for pair in pairs], [pair.path for pair in pairs]
    ratios = [pair.path / pair.loop for pair in pairs]
    of_lanes = [pair.path / pair.lanes for pair in pairs]
    shortest = min(pair.seconds for pair in pairs)
    return [
        [f"raw loop, {kind}: tokenized and sorted beforehand, best budget", spread(loops), "1.00", "", ""],
        [f"raw loop in lanes, {kind}", spread([pair.lanes for pair in pairs]), "", "1.00", ""],
        [
            f"batchmill, {kind}: submit to all results read; pairs of at least {shortest:.0f} s",
            spread(paths),
            f"{median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})",
            f"{median(of_lanes):.3f} ({min(of_lanes):.3f}–{max(of_lanes):.3f})",
            "1.10 of one pass, 0.95 of lanes",
        ],
    ]


if __name__ == "__main__":
    main()
