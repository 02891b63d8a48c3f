"""What models take and give, measured in turns, each in a process of its own."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Self

import numpy as np

from contracts.compression import Measurement
from contracts.errors import CompressionFailed
from contracts.preflight import PROCESS_BYTES
from worker.compression.evaluation import measuring
from worker.compression.evaluation.measuring import Loaded, Speed, Subject
from worker.compression.evaluation.weights import count, size_bytes

ROUNDS = 3
"""Each model in turn, so many times, and the median counts: what else runs here hits all of them."""
LATENCY_SECONDS = 1.2
SPEED_SECONDS = 2.0
"""About what a round takes of the slowest model."""
FULL_ROUNDS = 3
"""Models that have rounds of that length; the rounds of more are shorter, so that all take about as long."""
LATENCY_ROWS = 5, 100
"""At least and at most, in a round."""
TRIAL_ROWS = 3


def places(sizes: Sequence[int], free_bytes: int) -> list[int]:
    """Which models are measured: all of them, or the first and the last alone where memory does not hold all at once.

    Args:
        sizes: Bytes of each on disk.
        free_bytes: Of memory.
    """
    if sum(PROCESS_BYTES + 2 * size for size in sizes) <= free_bytes:
        return list(range(len(sizes)))
    return [0, len(sizes) - 1]


def measure(
    subjects: Sequence[Subject], report: Callable[[float], None] = lambda _: None
) -> tuple[list[Measurement], float]:
    """Of each subject a measurement on the same rows, and how far the rounds lie apart.

    The latter is the largest of all throughputs' (highest - lowest) / median: on a quiet machine a few hundredths.

    Args:
        subjects: Models of one task, with the same rows.
        report: Told the share that is done.

    Raises:
        CompressionFailed: A model could not be measured, or none of the rows is one that all of them take.
    """
    with ExitStack() as running:
        # One after the other: a load is timed.
        models = []
        for number, subject in enumerate(subjects, 1):
            models.append(running.enter_context(_Process(subject)))
            report(0.4 * number / len(subjects))
        lengths = np.array([model.loaded.lengths for model in models])
        usable = np.flatnonzero((lengths > 0).all(0))
        if not len(usable):
            raise CompressionFailed(
                "no evaluation row is one that the model takes before and after each step: give others"
            )
        # The same rows in the same order for every model, and any beginning of them is a fair sample.
        order = np.random.default_rng(0).permutation(usable)
        share = min(FULL_ROUNDS / len(models), 1.0)
        alone = order[: _rows_alone(models, order, share)].tolist()
        together = order[: _rows_together(models, lengths[:, order], share)].tolist()
        latencies: list[list[list[float]]] = [[] for _ in models]
        speeds: list[list[Speed]] = [[] for _ in models]
        for number in range(ROUNDS):
            for model, of_latency, of_speed in zip(models, latencies, speeds, strict=True):
                of_latency.append(model.ask("latencies", alone))
                of_speed.append(model.ask("speed", together))
            report(0.4 + 0.6 * (number + 1) / ROUNDS)
        found = [
            _measurement(model, of_latency, of_speed)
            for model, of_latency, of_speed in zip(models, latencies, speeds, strict=True)
        ]
    return found, max(_spread([speed.inputs / speed.seconds for speed in of_model]) for of_model in speeds)


def _rows_alone(models: Sequence["_Process"], order: Any, share: float) -> int:
    """Rows that the slowest model computes one by one in that share of the time of a round."""
    trial = order[:TRIAL_ROWS].tolist()
    slowest = max(statistics.median(model.ask("latencies", trial)) for model in models)
    least, most = LATENCY_ROWS
    return max(min(int(share * LATENCY_SECONDS / slowest), most), least)


def _rows_together(models: Sequence["_Process"], lengths: Any, share: float) -> int:
    """Rows that the slowest model computes in micro-batches in that share of a round; at least a pass of each."""
    counts = []
    for model, of_rows in zip(models, lengths, strict=True):
        enough = max(share * SPEED_SECONDS * model.loaded.tokens_per_second, model.loaded.budget_tokens)
        counts.append(int(np.searchsorted(np.cumsum(of_rows), enough)) + 1)
    return min(counts)


def _measurement(model: "_Process", latencies: list[list[float]], speeds: list[Speed]) -> Measurement:
    folder = model.subject.artifact.folder
    parameters, nonzeros = count(folder)
    p50, p95 = (statistics.median(float(np.percentile(part, rank)) for part in latencies) for rank in (50, 95))
    return Measurement(
        size_bytes=size_bytes(folder),
        parameters=parameters,
        nonzeros=nonzeros,
        memory_bytes=model.ask("peak", None),
        load_seconds=model.loaded.load_seconds,
        latency_p50=p50,
        latency_p95=p95,
        throughput=statistics.median(speed.inputs / speed.seconds for speed in speeds),
        tokens_per_second=statistics.median(speed.tokens / speed.seconds for speed in speeds),
        budget_tokens=model.loaded.budget_tokens,
    )


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


class _Process:
    """A model that waits in its process for questions."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.loaded: Loaded
        context = get_context("spawn")
        self._pipe, self._end = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=measuring.serve, args=(self._end, subject), name="measure", daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        self._end.close()
        try:
            self.loaded = self._answer()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def ask(self, question: str, argument: Any) -> Any:
        """What the process answers.

        Raises:
            CompressionFailed: It could not, or it ended.
        """
        with suppress(BrokenPipeError):  # what happened, the answer says, or its absence
            self._pipe.send((question, argument))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise CompressionFailed(
                f"measuring {self.subject.artifact.title}: its process ended with {self._process.exitcode}, as "
                "one that runs out of memory does"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _close(self) -> None:
        """The process ends when it finds nobody to answer; one that computes is not waited for."""
        self._pipe.close()
        self._process.join(1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
