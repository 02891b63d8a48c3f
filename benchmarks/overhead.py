"""What the path itself costs: the fake engine with 384 floats a result, beside one Celery task an item."""

import subprocess
import sys
import time
from collections.abc import Iterable

from celery import Celery

from benchmarks.harness import REPETITIONS, median, print_table, spread, stack
from producer import Client

ITEMS = 200_000
TASKS = 10_000


def main() -> None:
    with stack() as client:
        client.models.add("fake", "fake:")
        one_round(client, "warm-up")
        new, again = zip(*(one_round(client, str(number)) for number in range(REPETITIONS)), strict=True)
        tasks = [_celery_tasks(client) for _ in range(REPETITIONS)]
    base = median(tasks)
    print_table(
        f"overhead: {ITEMS:,} distinct inputs of 200 bytes, submit to all results read, {REPETITIONS} runs",
        ["path", "items/s: median (range)", "asked", "ratio"],
        [
            ["every item computed", spread(list(new)), "20,000", f"{median(list(new)) / base:.1f}"],
            ["the same job again, all cached", spread(list(again)), "40,000", f"{median(list(again)) / base:.1f}"],
            ["one Celery no-op task an item", spread(tasks), "", "1.0"],
        ],
    )


def one_round(client: Client, tag: str) -> tuple[float, float]:
    """Items a second of a new job, and of the same job again."""
    inputs = [f"{tag} {number:09d} ".ljust(200, "x") for number in range(ITEMS)]
    rates = []
    for computed in (ITEMS, 0):
        begin = time.perf_counter()
        job = client.submit("fake", inputs).wait(timeout=600)
        read = sum(result.output.shape == (384,) for result in job.results())
        rates.append(ITEMS / (time.perf_counter() - begin))
        if read != ITEMS or job.counts.computed != computed:
            raise AssertionError(f"read {read} of {ITEMS}, {job.counts}")
    return rates[0], rates[1]


def _celery_tasks(client: Client) -> float:
    """Tasks a second: published, and consumed by four threads of one worker."""
    broker = str(client.settings.broker_url)
    app = Celery("noop", broker=broker, set_as_current=False)
    app.conf.task_ignore_result = True
    worker = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.noop_worker", broker, str(TASKS)], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    try:
        _await(worker.stdout, "ready")
        begin = time.perf_counter()
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            for number in range(TASKS):
                app.send_task("noop", args=(f"{number:09d}".ljust(200, "x"),), queue="noop", producer=producer)
        _await(worker.stdout, "done")
        return TASKS / (time.perf_counter() - begin)
    finally:
        worker.terminate()
        worker.wait(30)


def _await(lines: Iterable[str], word: str) -> None:
    if not any(line.strip() == word for line in lines):
        raise RuntimeError(f"the worker ended before it said {word!r}")


if __name__ == "__main__":
    main()
