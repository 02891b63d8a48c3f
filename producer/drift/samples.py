"""What is looked at to tell how results moved: the same for the figures and for the pictures of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from contracts.jobs import JobInfo
from contracts.names import Task
from storage import comparing, jobs, results
from storage.comparing import Distances, JobKey, Numbers
from storage.database import Database


@dataclass(frozen=True)
class Samples:
    """Of a job, and of the one before it where there is one; what does not apply to the task is None."""

    now: Numbers | None = None
    before: Numbers | None = None
    labelled: bool = False
    """Whether the numbers are scores of labels, of which there are several."""
    distances: Distances | None = None


def read_samples(database: Database, job_id: UUID, before_job_id: UUID | None) -> Samples:
    """Samples of the outputs of two jobs: at most `comparing.SAMPLED_ROWS` rows of each, evenly by their positions.

    A job before that computed another task, or that a purge has removed, is as none.

    Raises:
        JobNotFound: There is no job of the first id.
    """
    with database.transaction() as connection:
        info, job = _job(connection, job_id)
        before = _job_before(connection, before_job_id, info.task)
        if info.task is Task.EMBED and before is not None:
            columns = [results.output_column(one.task, one.params) for one in (info, before[0])]
            return Samples(distances=comparing.sample_distances(connection, job, columns[0], before[1], columns[1]))
        if info.task not in comparing.NUMERIC:
            return Samples()
        now = comparing.sample_numbers(connection, info.task, job)
        earlier = None if before is None else comparing.sample_numbers(connection, info.task, before[1])
    labelled = info.task is Task.CLASSIFY and _has_labels([now] if earlier is None else [now, earlier], info.params)
    return Samples(now, earlier, labelled)


def _has_labels(samples: list[Numbers], params: Mapping[str, Any]) -> bool:
    """Whether a classifier tells labels apart; one with a single output gives bare numbers, each under one name."""
    names = {label for sample in samples for label in sample.labels}
    if len(names) > 1 or not all(sample.single for sample in samples if len(sample.values)):
        return True
    # Of several outputs `top_k` may have left the best, which is the same one in all rows.
    return params.get("top_k") is not None and all(_are_shares(sample.values) for sample in samples)


def _are_shares(values: NDArray[np.float64]) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _job(connection: Connection, job_id: UUID) -> tuple[JobInfo, JobKey]:
    info = jobs.get(connection, job_id)
    return info, JobKey(job_id, jobs.target_id(connection, job_id), info.counts.items)


def _job_before(connection: Connection, job_id: UUID | None, task: Task) -> tuple[JobInfo, JobKey] | None:
    if job_id is None or not comparing.hold(connection, job_id):
        return None
    found = _job(connection, job_id)
    return found if found[0].task is task else None
