"""Real weights: docstrings through MiniLM in nf4, end to end, beside the fastest loop over the same weights."""

import time

from benchmarks.harness import REPETITIONS, alone, median, print_table, spread, stack
from benchmarks.texts import stdlib_docstrings
from benchmarks.weights import MINILM
from producer import Client


def main() -> None:
    texts = sorted(set(stdlib_docstrings()))
    loops, paths = [], []
    with stack() as client:
        client.models.add("minilm", str(MINILM), quantization="nf4")
        client.submit("minilm", texts[:64]).wait()  # loads the model and measures its budget
        for _ in range(REPETITIONS):
            loops.append(_alone("nf4"))
            paths.append(_end_to_end(client, texts))
    fp32, bf16 = _alone("sentence-transformers-fp32"), _alone("sentence-transformers-bf16")
    ratio = median([path / loop for path, loop in zip(paths, loops, strict=True)])
    print_table(
        f"throughput: {len(texts):,} docstrings, all-MiniLM-L6-v2, {REPETITIONS} interleaved pairs",
        ["path", "texts/s: median (range)", "of the raw loop", "asked"],
        [
            ["raw loop, nf4: tokenized and sorted beforehand, best budget", spread(loops), "1.00", ""],
            ["batchmill, nf4: submit to all results read", spread(paths), f"{ratio:.2f}", "0.90"],
            [
                "SentenceTransformer.encode, bf16, once, a quarter of the texts",
                f"{bf16:,.0f}",
                f"{bf16 / median(loops):.2f}",
                "",
            ],
            [
                "SentenceTransformer.encode, fp32, once, a quarter of the texts",
                f"{fp32:,.0f}",
                f"{fp32 / median(loops):.2f}",
                "",
            ],
        ],
    )


def _alone(kind: str) -> float:
    return float(alone("raw_loop", kind))


def _end_to_end(client: Client, texts: list[str]) -> float:
    client.models.invalidate("minilm")  # a new epoch: everything is computed again
    begin = time.perf_counter()
    job = client.submit("minilm", texts).wait(timeout=600)
    read = sum(result.output.shape == (384,) for result in job.results())
    seconds = time.perf_counter() - begin
    if read != len(texts) or job.counts.computed != len(texts):
        raise AssertionError(f"read {read} of {len(texts)}, {job.counts}")
    return len(texts) / seconds


if __name__ == "__main__":
    main()
