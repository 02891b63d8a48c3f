"""What the parent gave for the rows of a distillation: computed by a scoring job, handed over as an array."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import numpy as np
import orjson
from numpy.typing import NDArray

from contracts.errors import CompressionFailed, JobNotFound
from contracts.jobs import JobInfo
from contracts.names import Task
from contracts.states import JobState
from storage import jobs, pages
from storage.database import Database
from storage.results import output_column
from worker.compression.order import Progress

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
PAGE = 5_000


@dataclass(frozen=True)
class Lesson:
    """Rows with what the teacher gave for them."""

    data: Path
    """JSON lines: those of the rows that the teacher could compute."""
    teacher: Path
    """float32 `[rows, n]`, as .npy."""
    left_out: int
    """Rows without an output of the teacher."""


def wait(database: Database, job_id: UUID, note: Progress, pause: Callable[[float], None], seconds: float) -> JobInfo:
    """The teacher's job, once it is done.

    Args:
        database: Where it is.
        job_id: Which.
        note: Told how far it is.
        pause: Lets so many seconds pass; raises when nobody waits any more.
        seconds: It is waited for so long at most.

    Raises:
        CompressionFailed: It did not succeed, not in that time, or it was removed.
    """
    deadline = time.monotonic() + seconds
    while True:
        info = _look(database, job_id)
        if info.state.terminal:
            break
        if time.monotonic() > deadline:
            raise CompressionFailed(_too_late(info, seconds))
        counts = info.counts
        share = 1 - counts.waiting / counts.distinct if counts.distinct else 0.0
        paused = ", paused" if info.state is JobState.PAUSED else ""
        note(0.0, f"waiting for the teacher: {100 * share:.0f} %{paused}")
        pause(POLL_SECONDS)
    if info.state is not JobState.SUCCEEDED:
        why = f": {info.error_message}" if info.error_message else ""
        raise CompressionFailed(f"the teacher's job {job_id} is {info.state}{why}")
    return info


def _look(database: Database, job_id: UUID) -> JobInfo:
    try:
        with database.transaction() as connection:
            return jobs.get(connection, job_id)
    except JobNotFound:
        raise CompressionFailed(f"the teacher's job {job_id} was removed: submit the compression again") from None


def _too_late(info: JobInfo, seconds: float) -> str:
    advice = f"start a worker of the pool {info.pool!r}, or more of them"
    if info.state is JobState.PAUSED:
        advice = "resume it"
    return (
        f"the teacher's job {info.id} is {info.state} still, after {seconds:,.0f} s, and {info.counts.waiting} of "
        f"{info.counts.distinct} rows are to be computed: {advice}, and submit again, or raise "
        "BATCHMILL_COMPRESSION_STEP_SECONDS"
    )


def write(database: Database, info: JobInfo, data: Path, labels: list[str] | None, into: Path) -> Lesson:
    """Write what a teacher's job gave for the rows of a file, in their order.

    Rows that the teacher failed at are in neither of the two files.

    Args:
        database: Where the results are.
        info: The job, which succeeded; its items are the rows.
        data: JSON lines.
        labels: Of a classifier: the names of its outputs, in their order.
        into: A folder.

    Raises:
        CompressionFailed: The job has another number of items, or an output for none of them.
    """
    lines = [line for line in data.read_bytes().splitlines() if line.strip()]
    if len(lines) != info.counts.items:
        raise CompressionFailed(
            f"{data.name} has {len(lines)} rows, and the teacher's job {info.id} {info.counts.items} items"
        )
    found, present = _read(database, info, labels)
    kept = [line for line, there in zip(lines, present, strict=True) if there]
    if not kept:
        raise CompressionFailed(f"the teacher's job {info.id} has no output for any of {len(lines)} rows")
    lesson = Lesson(into / "rows.jsonl", into / "teacher.npy", len(lines) - len(kept))
    lesson.data.write_bytes(b"\n".join(kept) + b"\n")
    np.save(lesson.teacher, found)
    if lesson.left_out:
        log.warning("%d rows are left out: the teacher has no output for them", lesson.left_out)
    return lesson


def _read(database: Database, info: JobInfo, labels: list[str] | None) -> tuple[NDArray[np.float32], list[bool]]:
    """What there is, `[present rows, n]`, and for which rows."""
    column = output_column(info.task, info.params)
    parts, present = [], []
    for start in range(0, info.counts.items, PAGE):
        with database.transaction() as connection:
            page = pages.read(
                connection,
                job_id=info.id,
                target_id=jobs.target_id(connection, info.id),
                column=column,
                start=start,
                stop=start + PAGE,
            )
        there = page.present
        present += there.tolist()
        if not there.any():
            continue
        if isinstance(page.outputs, list):
            parts.append(_scores([text for text in page.outputs if text is not None], info.task, labels or []))
        else:
            parts.append(page.outputs[there].astype(np.float32))
    return (np.concatenate(parts) if parts else np.empty((0, 0), np.float32)), present


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
