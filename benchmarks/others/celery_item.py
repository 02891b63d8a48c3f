"""One Celery task a text, as many projects begin: the model in the worker's processes, results in the broker.

Run with a broker's URL as a third argument it measures; the worker that it starts imports it for the task.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from celery import Celery, group
from trial import Encode, model_and_texts, report

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

app = Celery("item", broker=os.environ["ITEM_BROKER"], backend=os.environ["ITEM_BROKER"], set_as_current=False)
app.conf.update(worker_prefetch_multiplier=64, task_default_queue="item", worker_hijack_root_logger=False)


@cache
def model() -> "SentenceTransformer":
    """The model, loaded once in each process."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(int(os.environ["ITEM_THREADS"]))
    dtype = getattr(torch, os.environ["ITEM_DTYPE"])
    return SentenceTransformer(os.environ["ITEM_MODEL"], device="cpu", model_kwargs={"dtype": dtype})


@app.task(name="embed")
def embed(text: str) -> list[float]:
    """One vector."""
    vector: Any = model().encode(text)
    return [float(value) for value in vector]


class Workers:
    """Celery's worker of one setting at a time; it lives on until another is asked for."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._setting: dict[str, str] = {}

    def embed(self, texts: list[str], setting: dict[str, str]) -> int:
        """How many vectors come back."""
        if setting != self._setting:
            self.stop()
            self._start(setting)
        tasks = group(embed.s(text) for text in texts).apply_async()
        return sum(len(vector) == 384 for vector in tasks.get(timeout=3600))

    def stop(self) -> None:
        """End the worker, if there is one."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def _start(self, setting: dict[str, str]) -> None:
        command = [sys.executable, "-m", "celery", "-A", "celery_item", "worker", "--queues", "item"]
        options = ["--concurrency", setting["ITEM_PROCESSES"], "--loglevel", "ERROR", "--without-mingle"]
        self._setting = setting
        self._process = subprocess.Popen(
            [*command, *options, "--without-gossip"],
            env={**os.environ, **setting},
            cwd=os.path.dirname(os.path.abspath(__file__)),
            stdout=subprocess.DEVNULL,
        )


def main() -> None:
    folder, texts = model_and_texts()
    workers = Workers()
    try:
        report(_settings(workers, folder), texts)
    finally:
        workers.stop()


def _settings(workers: Workers, folder: str) -> Iterator[tuple[str, Encode]]:
    for dtype in ("float32", "bfloat16"):
        for processes, threads in (("1", "2"), ("2", "1")):
            setting = {
                "ITEM_MODEL": folder,
                "ITEM_DTYPE": dtype,
                "ITEM_PROCESSES": processes,
                "ITEM_THREADS": threads,
            }
            name = f"{dtype}, processes: {processes}, threads each: {threads}"
            yield name, lambda texts, setting=setting: workers.embed(texts, setting)


if __name__ == "__main__":
    main()
