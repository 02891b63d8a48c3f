"""What compression buys and costs: recipes on real models, run as jobs, and their results scored with as any model."""

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from benchmarks.harness import alone, compressor, median, print_table, stack
from benchmarks.heads import TOPIC_TOKENS, TOPICS_HELD_BACK, Labelled, held_back, save_topics, topics
from benchmarks.plots import bars
from benchmarks.students import cut
from benchmarks.texts import stdlib_docstrings
from benchmarks.weights import MINILM, SMOLLM2
from contracts.models import ModelSpec
from producer import Client
from producer.compression.job import CompressionJob
from storage.artifacts import ArtifactStore

ROUNDS = 2
PATIENCE = 1800.0
LAYERS = (0, 4, 5)
"""Of six, those that a student of three begins with: the nearest to the whole of those in how-to/distillation.md."""
DISTILL = {"step": "distill", "learning_rate": 3e-4, "epochs": 4, "max_tokens": 64, "schedule": "cosine"}
KEEP = 0.58
"""Of neurons and heads: 6 of 12 heads and 896 of 1,536 neurons stay, which are 0.56 of the encoder's weights."""
SCORED = 60
"""Docstrings whose perplexity is asked for."""
KILLED_ROWS = 1_200
NF4 = [{"step": "quantize", "method": "nf4"}]
INT8 = [{"step": "quantize", "method": "int8"}]
EXPORT = {"step": "export", "format": "onnx"}


class Figure(NamedTuple):
    """One number that is asked for."""

    what: str
    found: float
    asked: float | None = None
    at_most: bool = False
    form: str = ".3f"

    def row(self) -> list[str]:
        """As the table has it; by how much it misses, where it does."""
        found = f"{self.found:{self.form}}"
        if self.asked is None:
            return [self.what, found, "", ""]
        met = self.found <= self.asked if self.at_most else self.found >= self.asked
        asked = f"{'at most' if self.at_most else 'at least'} {self.asked:{self.form}}"
        return [self.what, found, asked, "met" if met else f"missed by {abs(self.found - self.asked):{self.form}}"]


def main() -> None:
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bm-models-") as folder, stack(tick_seconds=1.0) as client:
        for part in (_embeddings, _classifier, _language_model, _killed):
            part(client, Path(folder))
    print(f"{time.monotonic() - begin:,.0f} s in all")


def _embeddings(client: Client, folder: Path) -> None:
    """MiniLM in 4 and 8 bits, as a graph, and with half of its layers; judged on docstrings that none learned from."""
    texts = sorted(set(stdlib_docstrings()))
    unseen, learned = texts[::4], [text for i, text in enumerate(texts) if i % 4]
    whole = client.models.add("minilm", str(MINILM))
    half = client.models.add("bf16", str(MINILM), quantization="bf16")
    models = {
        "float32": whole,
        "bf16": half,
        "nf4": _compress(client, "minilm", NF4, "nf4"),
        "int8": _compress(client, "minilm", INT8, "int8"),
        "ONNX int8": _compress(client, "minilm", [EXPORT, *INT8], "graph"),
        "three layers": client.models.add("cut", str(cut(MINILM, LAYERS, folder / "cut"))),
        "three layers, distilled": _compress(
            client, "minilm", [{**DISTILL, "student": LAYERS, "data": learned}], "distilled"
        ),
    }
    sizes = {name: _bytes(spec) for name, spec in models.items()}
    exact = _vectors(client, whole, unseen)
    cosines = {name: float((exact * _vectors(client, spec, unseen)).sum(1).mean()) for name, spec in models.items()}
    rates = _rates(client, models, texts[::2])
    over_encode = _over_encode(client, models["ONNX int8"], texts)

    def faster(name: str, other: str) -> float:
        return median([one / two for one, two in zip(rates[name], rates[other], strict=True)])

    ratio = {name: size / sizes["float32"] for name, size in sizes.items()}
    graph, student = "ONNX int8", "three layers, distilled"
    _show(
        f"compression: all-MiniLM-L6-v2, {len(unseen):,} docstrings that nothing learned from, {ROUNDS} rounds",
        [
            Figure("nf4: bytes, of float32", ratio["nf4"], 0.35, at_most=True),
            Figure("nf4: mean cosine after reloading", cosines["nf4"], 0.97),
            Figure("int8: mean cosine after reloading", cosines["int8"], 0.999, form=".4f"),
            Figure("ONNX int8: bytes, of float32", ratio[graph], 0.30, at_most=True),
            Figure("ONNX int8: mean cosine", cosines[graph], 0.99, form=".4f"),
            Figure("ONNX int8: throughput, of bf16 by torch", faster(graph, "bf16"), 1.3, form=".2f"),
            Figure("ONNX int8: of SentenceTransformer.encode, float32", over_encode, 4.0, form=".2f"),
            Figure("three layers, distilled: throughput, of six", faster(student, "float32"), 1.7, form=".2f"),
            Figure("three layers, distilled: mean cosine", cosines[student], 0.90),
            Figure("three layers, distilled: above those cut", cosines[student] - cosines["three layers"], 0.05),
        ],
    )
    print_table(
        "compression: each model",
        ["", "MB", "texts/s", "mean cosine"],
        [[n, f"{sizes[n] / 1e6:.1f}", f"{median(rates[n]):,.0f}", f"{cosines[n]:.4f}"] for n in models],
    )
    bars(
        "compression",
        "all-MiniLM-L6-v2, compressed",
        {
            "bytes on disk, MB": {name: size / 1e6 for name, size in sizes.items()},
            "texts/s": {name: median(values) for name, values in rates.items()},
            "mean cosine to float32": cosines,
        },
    )


def _classifier(client: Client, folder: Path) -> None:
    """A classifier of docstrings by package in 4 bits, and with neurons and heads removed and then distilled."""
    judged = held_back(topics(), TOPICS_HELD_BACK)
    learned = [example for i, example in enumerate(topics()) if i % TOPICS_HELD_BACK]
    rows = [{"input": example.text, "label": example.label} for example in learned]
    whole = client.models.add("topics", str(save_topics(folder / "topics")), task="classify")
    nf4 = _compress(client, "topics", NF4, "topics-nf4")
    smaller = _compress(
        client,
        "topics",
        [
            {"step": "prune", "method": "structured", "keep_ratio": KEEP},
            {**DISTILL, "max_tokens": TOPIC_TOKENS, "data": rows},
        ],
        "topics-small",
    )
    accuracy = {spec.name: _accuracy(client, spec, judged) for spec in (whole, nf4, smaller)}
    before, after = (_encoder_parameters(client, spec, folder) for spec in (whole, smaller))
    rates = _rates(client, {spec.name: spec for spec in (whole, smaller)}, [example.text for example in judged])
    faster = median([one / two for one, two in zip(rates["topics-small"], rates["topics"], strict=True)])
    _show(
        f"compression: a classifier of {len(topics()) - len(judged):,} docstrings by package, {len(judged):,} held out",
        [
            Figure("accuracy", accuracy["topics"]),
            Figure("nf4: accuracy lost", accuracy["topics"] - accuracy["topics-nf4"], 0.02, at_most=True),
            Figure("pruned and distilled: parameters of the encoder", after / before, 0.6, at_most=True),
            Figure(
                "pruned and distilled: accuracy lost", accuracy["topics"] - accuracy["topics-small"], 0.03, at_most=True
            ),
            Figure("pruned and distilled: throughput, of the whole", faster, form=".2f"),
        ],
    )


def _language_model(client: Client, _: Path) -> None:
    """SmolLM2 in 4 bits, as its report has it."""
    client.models.add("smollm2", str(SMOLLM2), task="score")
    texts = [text for text in stdlib_docstrings()[::110] if len(text) > 40][:SCORED]
    job = client.compress("smollm2", NF4, name="smollm2-nf4", evaluate=texts).wait(PATIENCE)
    scored = client.submit("smollm2-nf4", texts).wait(PATIENCE)
    outputs = [result.output for result in scored.results() if result.error is None]
    again = np.exp(-sum(o["log_likelihood"] for o in outputs) / sum(o["tokens"] for o in outputs))
    report = job.report()
    before, after = (stage.quality["perplexity"] for stage in (report.stages[0], report.stages[-1]))
    _show(
        f"compression: SmolLM2-135M in nf4, {len(texts)} docstrings",
        [
            Figure("bytes, of the GGUF file", report.stages[-1].size_bytes / report.stages[0].size_bytes),
            Figure("perplexity before", before, form=".2f"),
            Figure("perplexity after", after, form=".2f"),
            Figure("perplexity after, scored through the queue", float(again), form=".2f"),
        ],
    )
    for note in [*report.notes, *(note for result in report.results for note in result.notes)]:
        print(f"- {note}")


def _killed(client: Client, _: Path) -> None:
    """A compression whose worker is killed in its second step, beside one that is left alone."""
    texts = sorted(set(stdlib_docstrings()))[:KILLED_ROWS]
    recipe = [
        {"step": "prune", "method": "structured", "keep_ratio": KEEP},
        {**DISTILL, "epochs": 2, "data": texts},
    ]
    digests, steps = [], []
    for kill in (True, False):
        client.models.invalidate("minilm")  # a new epoch: no step is had from the other job
        job = client.compress("minilm", recipe, name="killed" if kill else "left-alone")
        if kill:
            _wait_half_way(job)
            os.kill(compressor(client.settings), signal.SIGKILL)
        job.wait(PATIENCE)
        digests.append(client.models.get(job.model).digest)
        steps.append(job.counts.computed)
    _show(
        "compression: the worker killed in the second of two steps",
        [
            Figure("steps computed, and the end of the job", steps[0], steps[1], at_most=True, form=".0f"),
            Figure(
                "artifacts with the same digest as that of a job that was left alone",
                digests[0] == digests[1],
                1,
                form=".0f",
            ),
        ],
    )


def _compress(client: Client, model: str, recipe: Sequence[Any], name: str) -> ModelSpec:
    job = client.compress(model, recipe, name=name).wait(PATIENCE)
    return client.models.get(job.model)


def _bytes(spec: ModelSpec) -> int:
    return sum(file.size for file in spec.files)


def _vectors(client: Client, spec: ModelSpec, texts: list[str]) -> NDArray[np.float32]:
    """Of each text, `[n, 384]`."""
    results = client.submit(spec.reference, texts).wait(PATIENCE).results()
    return np.array([result.output for result in results], np.float32)


def _over_encode(client: Client, spec: ModelSpec, texts: list[str]) -> float:
    """A model's rate over that of SentenceTransformer.encode in float32, in turns."""
    ratios = []
    for _ in range(ROUNDS):
        encode = float(alone("raw_loop", "sentence-transformers-fp32"))
        ratios.append(_rates(client, {"": spec}, texts, rounds=1)[""][0] / encode)
    return median(ratios)


def _rates(
    client: Client, models: dict[str, ModelSpec], texts: list[str], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Texts a second from the submission to the last result read, the models in turns."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, spec in models.items():
            client.submit(spec.reference, texts[:64]).wait(PATIENCE)  # in memory, its budget measured
            client.models.invalidate(spec.reference)  # a new epoch: everything is computed again
            begin = time.perf_counter()
            job = client.submit(spec.reference, texts).wait(PATIENCE)
            read = sum(result.error is None for result in job.results())
            seconds = time.perf_counter() - begin
            if read != len(texts) or job.counts.computed != len(texts):
                raise AssertionError(f"{name}: read {read} of {len(texts)}, {job.counts}")
            found[name].append(len(texts) / seconds)
    return found


def _accuracy(client: Client, spec: ModelSpec, examples: list[Labelled]) -> float:
    job = client.submit(spec.reference, [example.text for example in examples]).wait(PATIENCE)
    right: list[bool] = [r.output[0]["label"] == e.label for r, e in zip(job.results(), examples, strict=True)]
    return sum(right) / len(right)


def _encoder_parameters(client: Client, spec: ModelSpec, folder: Path) -> int:
    """Weights of the layers; those of the embeddings and the head are not among them."""
    store = ArtifactStore(client.settings.artifacts_url)
    files = store.fetch([file for file in spec.files if file.path.endswith(".safetensors")], folder)
    with safe_open(files / "model.safetensors", "np") as weights:
        names = [name for name in weights.keys() if ".layer." in name]  # noqa: SIM118
        return sum(int(np.prod(weights.get_slice(name).get_shape())) for name in names)


def _wait_half_way(job: CompressionJob) -> None:
    """Until the second step is at work."""
    deadline = time.monotonic() + PATIENCE
    while (progress := job.compression.progress) is None or (progress.position, progress.fraction) < (2, 0.3):
        if job.refresh().state.terminal or time.monotonic() > deadline:
            raise AssertionError(f"the step was not seen at work: {job.refresh()}")
        time.sleep(0.05)


def _show(title: str, figures: Sequence[Figure]) -> None:
    print_table(title, ["", "measured", "asked", ""], [figure.row() for figure in figures])


if __name__ == "__main__":
    main()
