"""What the parent gave for the rows of a distillation: computed by a scoring job, handed over as an array."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

import numpy as np
import orjson
from numpy.typing import NDArray
from sqlalchemy import Connection

from contracts.errors import CompressionFailed, JobNotFound
from contracts.jobs import JobInfo
from contracts.names import Task
from contracts.states import JobState
from storage import compressions, jobs, pages
from storage.pages import Page
from storage.results import output_column
from worker.compression.order import Progress
from worker.compression.patience import PatientDatabase

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
LEAST_SECONDS = 10.0
"""So long at least is looked before it is given up, whatever was before: after a time when all stood still, scoring
workers need a tick or two. Less than a job rests that lets another go before it."""
PAGE = 5_000
MOST_LEFT_OUT = 0.01
"""A teacher that failed at this share of the rows or more is refused: what is learnt is kept for all who ask alike."""


@dataclass(frozen=True)
class Lesson:
    """Rows with what the teacher gave for them."""

    data: Path
    """JSON lines: those of the rows that the teacher could compute."""
    teacher: Path
    """float32 `[rows, n]`, as .npy."""
    left_out: int
    """Rows without an output of the teacher."""


def wait(
    database: PatientDatabase,
    job_id: UUID,
    waiting: UUID,
    note: Progress,
    pause: Callable[[float], None],
    seconds: float,
) -> JobInfo:
    """The teacher's job, once it is done.

    Args:
        database: Where it is.
        job_id: Which.
        waiting: The compression that waits: since it was first worked on, whoever did so.
        note: Told how far it is.
        pause: Lets so many seconds pass; raises when nobody waits any more.
        seconds: It is waited for so long at most while nobody takes up any of its work.

    Raises:
        CompressionFailed: It did not succeed, nobody works on it, or it was removed.
    """
    began = time.monotonic()
    while True:
        info, idle = database.transact(lambda connection: _look(connection, job_id, waiting))
        if info.state.terminal:
            break
        if idle >= seconds and time.monotonic() - began >= LEAST_SECONDS:
            raise CompressionFailed(_too_late(info, idle))
        counts = info.counts
        share = 1 - counts.waiting / counts.distinct if counts.distinct else 0.0
        paused = ", paused" if info.state is JobState.PAUSED else ""
        note(0.0, f"waiting for the teacher: {100 * share:.0f} %{paused}")
        pause(POLL_SECONDS)
    if info.state is not JobState.SUCCEEDED:
        why = f": {info.error_message}" if info.error_message else ""
        raise CompressionFailed(f"the teacher's job {job_id} is {info.state}{why}")
    return info


def _look(connection: Connection, job_id: UUID, waiting: UUID) -> tuple[JobInfo, float]:
    try:
        return jobs.get(connection, job_id), compressions.idle_seconds(connection, waiting, job_id)
    except JobNotFound:
        raise CompressionFailed(f"the teacher's job {job_id} was removed: submit the compression again") from None


def _too_late(info: JobInfo, seconds: float) -> str:
    advice = f"start a worker of the pool {info.pool!r}, or more of them"
    if info.state is JobState.PAUSED:
        advice = "resume it"
    return (
        f"the teacher's job {info.id} is {info.state} still, nobody has taken up any of its work for {seconds:,.0f} s, "
        f"and {info.counts.waiting} of {info.counts.distinct} rows are to be computed: {advice}, and submit again, or "
        "raise BATCHMILL_COMPRESSION_STEP_SECONDS"
    )


def labels_of(folder: Path) -> list[str]:
    """The names of a classifier's outputs, in their order: the engine that gave them made sure that they are there."""
    named = orjson.loads((folder / "config.json").read_bytes())["id2label"]
    return [named[str(place)] for place in range(len(named))]


def write(database: PatientDatabase, info: JobInfo, data: Path, labels: list[str] | None, into: Path) -> Lesson:
    """Write what a teacher's job gave for the rows of a file, in their order.

    Rows that the teacher failed at are in neither of the two files; they may be few.

    Args:
        database: Where the results are.
        info: The job, which succeeded; its items are the rows.
        data: JSON lines.
        labels: Of a classifier: the names of its outputs, in their order.
        into: A folder.

    Raises:
        CompressionFailed: The job has another number of items, or no output for a hundredth of them or more.
    """
    lines = [line for line in data.read_bytes().splitlines() if line.strip()]
    if len(lines) != info.counts.items:
        raise CompressionFailed(
            f"{data.name} has {len(lines)} rows, and the teacher's job {info.id} {info.counts.items} items"
        )
    found, present, error = _read(database, info, labels)
    kept = [line for line, there in zip(lines, present, strict=True) if there]
    if (left_out := len(lines) - len(kept)) >= MOST_LEFT_OUT * len(lines):
        raise CompressionFailed(
            f"the teacher's job {info.id} has no output for {left_out} of {len(lines)} rows, the first of them row "
            f"{present.index(False) + 1}{error}: mend these rows or leave them out, and submit again"
        )
    lesson = Lesson(into / "rows.jsonl", into / "teacher.npy", left_out)
    lesson.data.write_bytes(b"\n".join(kept) + b"\n")
    np.save(lesson.teacher, found)
    if lesson.left_out:
        log.warning("%d rows are left out: the teacher has no output for them", lesson.left_out)
    return lesson


def _read(
    database: PatientDatabase, info: JobInfo, labels: list[str] | None
) -> tuple[NDArray[np.float32], list[bool], str]:
    """What there is, `[present rows, n]`, for which rows, and what is said of the first that there is nothing for."""
    parts: list[NDArray[np.float32]] = []
    present: list[bool] = []
    error = ""
    for start in range(0, info.counts.items, PAGE):
        page = database.transact(partial(_page, info=info, start=start))
        there = page.present
        present += there.tolist()
        error = error or next((f" ({code}: {message})" for code, message in filter(None, page.errors)), "")
        if not there.any():
            continue
        if isinstance(page.outputs, list):
            parts.append(_scores([text for text in page.outputs if text is not None], info.task, labels or []))
        else:
            parts.append(page.outputs[there].astype(np.float32))
    return (np.concatenate(parts) if parts else np.empty((0, 0), np.float32)), present, error


def _page(connection: Connection, info: JobInfo, start: int) -> Page:
    return pages.read(
        connection,
        job_id=info.id,
        target_id=jobs.target_id(connection, info.id),
        column=output_column(info.task, info.params),
        start=start,
        stop=start + PAGE,
    )


def _scores(texts: list[str], task: Task, labels: list[str]) -> NDArray[np.float32]:
    """The scores of all labels, in their order."""
    if task is not Task.CLASSIFY:
        raise CompressionFailed(f"what a teacher gives for {task} is neither a vector nor labels")
    places = {label: place for place, label in enumerate(labels)}
    scores = np.zeros((len(texts), len(labels)), np.float32)
    for row, text in enumerate(texts):
        for entry in orjson.loads(text):
            scores[row, places[entry["label"]]] = entry["score"]
    return scores
