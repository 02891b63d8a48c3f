"""Eight chats on SmolLM2: through the queue, one at a time, and by `transformers.generate` as one batch."""

import json
import time
from typing import Any

from benchmarks.harness import alone, median, print_table, spread, stack
from benchmarks.plots import bars
from benchmarks.weights import SMOLLM2
from producer import Client

KINDS = ("none", "bf16")
ROUNDS = 2
NEW_TOKENS = 128
QUESTIONS = (
    "What is a message queue good for?",
    "Explain in two sentences why the sky is blue.",
    "Write a haiku about a database.",
    "Name three rivers of Europe and a city on each.",
    "How do I boil an egg so that the yolk stays soft?",
    "Summarize what a lease protects when several workers share one list of tasks and any of them may die.",
    "Give me a short list of things to pack for a week in the mountains.",
    "What is the difference between a process and a thread?",
)


def main() -> None:
    measured = {kind: _measure(kind) for kind in KINDS}
    rows = []
    for kind, rates in measured.items():
        one, batch = median(rates["one at a time"]), median(rates["generate, one batch"])
        for path, values in rates.items():
            asked = "4.0 and 0.90" if path == "through the queue" else ""
            here = median(values)
            rows.append([f"{path}, {kind}", spread(values), f"{here / one:.1f}", f"{here / batch:.2f}", asked])
    print_table(
        f"generation: eight chats, SmolLM2-135M, {NEW_TOKENS} new tokens at most, {ROUNDS} interleaved rounds",
        ["path", "tokens/s: median (range)", "of one at a time", "of the batch", "asked"],
        rows,
    )
    panels = {f"{kind}, tokens/s": {path: median(values) for path, values in measured[kind].items()} for kind in KINDS}
    bars("generation", "Eight chats on SmolLM2-135M", panels)


def _measure(kind: str) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {"one at a time": [], "generate, one batch": [], "through the queue": []}
    with stack() as client:
        client.models.add("smollm2", str(SMOLLM2), task="generate", quantization=kind)
        _end_to_end(client)  # loads the model and measures its budget
        for _ in range(ROUNDS):
            raw = json.loads(alone("raw_generate", kind, str(NEW_TOKENS), json.dumps(QUESTIONS)))
            for path, rate in raw.items():
                rates[path].append(rate)
            rates["through the queue"].append(_end_to_end(client))
    return rates


def _end_to_end(client: Client) -> float:
    """New tokens a second from the submission to the last result in hand."""
    client.models.invalidate("smollm2")  # a new epoch: everything is computed again
    chats: list[Any] = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    begin = time.perf_counter()
    job = client.submit("smollm2", chats, params={"max_new_tokens": NEW_TOKENS}).wait(timeout=600)
    outputs = [result.output for result in job.results()]
    seconds = time.perf_counter() - begin
    if job.counts.computed != len(QUESTIONS):
        raise AssertionError(f"{job.counts}")
    return sum(int(output["new_tokens"]) for output in outputs) / seconds


if __name__ == "__main__":
    main()
