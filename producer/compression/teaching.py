"""What a model gives for the rows of distillations comes from jobs like any other, and their cache."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias
from uuid import UUID

import orjson
from sqlalchemy import Connection

from contracts.errors import JobNotFound
from contracts.models import ModelSpec
from contracts.names import Task
from contracts.recipes import Dataset, Distill, Step
from contracts.states import JobState
from storage import compressions, jobs, models
from storage.artifacts import ArtifactStore
from storage.database import Database

Scorer: TypeAlias = Callable[[str, Iterable[Any]], UUID]
"""Submits inputs to a model; the job's id."""

_SCORED = (Task.EMBED, Task.CLASSIFY)
"""Tasks whose teacher's outputs are scored beforehand; the logits of language models are too large to be kept."""
_ENDED_EARLY = (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


def have_scored(
    store: ArtifactStore,
    parent: ModelSpec,
    recipe: Iterable[Step],
    score: Scorer,
    standing: Mapping[str, UUID] | None = None,
) -> dict[str, UUID]:
    """The job that scores the rows of each distillation, by their SHA-256: the one that stands, or else a new one.

    Raises:
        ArtifactError: The rows are not in the store.
    """
    if parent.task not in _SCORED:
        return {}
    data = {step.data.file.sha256: step.data for step in recipe if isinstance(step, Distill)}
    stands = standing or {}
    return {
        sha256: stands.get(sha256) or score(parent.reference, _inputs(store, dataset))
        for sha256, dataset in data.items()
    }


def have_scored_again(database: Database, store: ArtifactStore, job_id: UUID, score: Scorer) -> dict[str, UUID]:
    """The same for a compression that is to be retried: a job that it can learn from as it is stays its teacher's.

    Raises:
        UnknownModel: The compression's model was removed.
        ArtifactError: The rows are not in the store.
    """
    with database.transaction() as connection:
        spec = compressions.get(connection, job_id)
        parent = models.get(connection, jobs.get(connection, job_id).model)
        standing = {sha256: one for sha256, one in spec.teachers.items() if _teaches(connection, parent, one)}
    return have_scored(store, parent, spec.recipe, score, standing)


def _teaches(connection: Connection, parent: ModelSpec, job_id: UUID) -> bool:
    """Whether a job gives, or gave, all outputs of the model at its present epoch."""
    try:
        found = jobs.get(connection, job_id)
    except JobNotFound:  # removed, as it was old
        return False
    if found.state in _ENDED_EARLY or found.counts.failed:
        return False
    return jobs.target_id(connection, job_id) == models.find_target(connection, parent, found.params)


def _inputs(store: ArtifactStore, dataset: Dataset) -> Iterator[Any]:
    """The inputs of a dataset's rows, in their order."""
    with TemporaryDirectory(prefix="batchmill-") as folder:
        file = store.fetch([dataset.file], Path(folder)) / dataset.file.path
        with file.open("rb") as lines:
            for line in lines:
                yield orjson.loads(line)["input"]
