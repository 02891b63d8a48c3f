"""The process that one model is measured in: it loads the model, and measures what it is asked to."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from contracts.errors import BatchmillError, CompressionFailed, describe
from contracts.names import Task
from contracts.params import parse_params, pass_tokens
from contracts.settings import Settings
from worker import budget
from worker.compression.evaluation import memory
from worker.compression.evaluation.order import Artifact
from worker.compression.evaluation.outputs import load, passes
from worker.compression.evaluation.rows import read_rows
from worker.engines.registry import engine_class
from worker.hardware import detect
from worker.preparing import prepare

NEW_TOKENS = 32
"""Tokens that a text is continued by, where the task generates."""
LEAST_SECONDS = 0.5
"""Rows that are done sooner are computed again, or the clock would tell little."""


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    artifact: Artifact
    task: Task
    engine: str
    data: Path
    """The evaluation rows."""


@dataclass(frozen=True)
class Loaded:
    """What is known of a model that stands ready."""

    load_seconds: float
    budget_tokens: int
    tokens_per_second: float
    """Of padded tokens, at that budget, when it was measured."""
    lengths: list[int]
    """Tokens of each row; 0 for one that the model refuses."""


@dataclass(frozen=True)
class Speed:
    """Of rows in micro-batches."""

    inputs: int
    tokens: int
    seconds: float


def serve(pipe: Connection, subject: Subject) -> None:
    """Load the model, and answer until the other end is closed.

    Sends a `Loaded`, then for each `(question, argument)` its answer; an exception is sent in place of an answer.
    """
    try:
        bench = Bench(subject)
        pipe.send(bench.loaded)
        while True:
            question, argument = pipe.recv()
            pipe.send(getattr(bench, question)(argument))
    except (EOFError, BrokenPipeError):
        return
    except BatchmillError as error:
        pipe.send(CompressionFailed(f"measuring {subject.artifact.title}: {error}"))
    except Exception as error:  # whatever a library raises
        pipe.send(CompressionFailed(f"measuring {subject.artifact.title}: {describe(error)}"))


class Bench:
    """A loaded model with the evaluation rows made ready."""

    def __init__(self, subject: Subject) -> None:
        self._device = detect(Settings()).device
        self._payloads = [row.payload for row in read_rows(subject.data)]
        chosen = {"max_new_tokens": NEW_TOKENS} if subject.task is Task.GENERATE else {}
        self._params = parse_params(subject.task, chosen)
        # Libraries are no part of a model.
        engine_class(subject.engine)
        self._before = memory.held(self._device)
        began = time.perf_counter()
        self._engine = load(subject.artifact, subject.task, subject.engine, self._device)
        load_seconds = time.perf_counter() - began
        lengths = prepare(self._engine, self._payloads, self._params).lengths.tolist()
        measured = budget.measure(self._engine, self._params)
        self._tokens = pass_tokens(measured.tokens, subject.task, self._params)
        self.loaded = Loaded(load_seconds, measured.tokens, measured.tokens_per_second, lengths)
        # Not sooner: the search tries larger passes than are computed later.
        memory.forget_peak(self._device)

    def latencies(self, places: Sequence[int]) -> list[float]:
        """Seconds of each row by itself, tokenized and computed."""
        found = []
        for place in places:
            began = time.perf_counter()
            self._engine.run(prepare(self._engine, [self._payloads[place]], self._params).rows, self._params)
            found.append(time.perf_counter() - began)
        return found

    def speed(self, places: Sequence[int]) -> Speed:
        """Rows tokenized and computed in micro-batches of the measured budget; again, where they are few."""
        payloads = [self._payloads[place] for place in places]
        rounds, tokens = 0, 0
        began, seconds = time.perf_counter(), -math.inf
        while seconds < LEAST_SECONDS:
            prepared = prepare(self._engine, payloads, self._params)
            for part in passes(prepared, self._tokens):
                outputs = self._engine.run([prepared.rows[place] for place in part], self._params)
                used = self._engine.used_tokens(outputs)
                tokens += int(np.sum(prepared.lengths[part])) if used is None else used
            rounds += 1
            seconds = time.perf_counter() - began
        return Speed(rounds * len(payloads), tokens, seconds)

    def peak(self, _: Any) -> int:
        """Bytes that the process held at most since the budget was measured, less what it held before the load."""
        return max(memory.peak(self._device) - self._before, 0)
