"""One interactive line at a time while a bulk job keeps the model busy."""

import statistics
import time
from itertools import islice, pairwise

from benchmarks.harness import print_table, stack
from benchmarks.texts import sentences
from benchmarks.weights import MINILM
from producer import Client

TEXTS = 100_000
TRIES = 50
PAUSE = 1.5
"""Seconds between tries: they are spread over about a minute and a half of the bulk job."""


def real_texts(count: int) -> list[str]:
    """Distinct passages of the standard library's docstrings: runs of one, two, three … consecutive sentences."""
    single = sentences(min(count, 16_000))
    passages, run = list(single), list(single)
    while len(passages) < count:
        run = [f"{text} {following}" for text, (_, following) in zip(run, pairwise(single), strict=False)]
        single = single[1:]
        passages += run
    return list(islice(dict.fromkeys(passages), count))


def main() -> None:
    texts = real_texts(TEXTS)
    with stack() as client:
        client.models.add("minilm", str(MINILM), quantization="nf4")
        client.submit("minilm", texts[:64]).wait()
        idle = [_ask(client, f"nobody waits before question {number}") for number in range(TRIES)]
        bulk = client.submit("minilm", texts, priority="bulk")
        busy = []
        for number in range(TRIES):
            time.sleep(PAUSE)
            busy.append(_ask(client, f"what does question {number} have to do with all that?"))
        if bulk.refresh().state.terminal:
            raise AssertionError("the bulk job was done before the last try: take more texts")
        done = bulk.counts.computed
    print_table(
        f"latency: one line, submit to result, while {len(texts):,} texts run ({done:,} done by the last of {TRIES})",
        ["", "p50 ms", "p95 ms", "max ms", "asked: p95 ms"],
        [_row("no other job", idle, ""), _row("beside the bulk job", busy, "500")],
    )


def _ask(client: Client, text: str) -> float:
    begin = time.perf_counter()
    job = client.submit("minilm", [text], priority="interactive").wait(timeout=60)
    (result,) = job.results()
    if result.output is None or result.cached:
        raise AssertionError(f"{result}")
    return time.perf_counter() - begin


def _row(name: str, seconds: list[float], asked: str) -> list[str]:
    cuts = statistics.quantiles(seconds, n=20)
    return [name, *(f"{value * 1000:,.0f}" for value in (cuts[9], cuts[18], max(seconds))), asked]


if __name__ == "__main__":
    main()
