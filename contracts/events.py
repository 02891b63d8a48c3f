"""What a webhook says: the events of a job and of a run, and the body that announces one."""

import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from contracts.compression import Verdict
from contracts.jobs import JobCounts, JobInfo
from contracts.names import Task
from contracts.runs import Changes, Drift, RunInfo
from contracts.states import JobState, RunState
from contracts.urls import shown

SCHEME = "batchmill://jobs/"
MAX_BODY_BYTES = 20_000
"""What Standard Webhooks 1.0 asks a body to stay below; the parts that users fill are bounded so that it does."""
MAX_METADATA_BYTES = 8_000
MAX_MESSAGE_BYTES = 4_000
MAX_LINK_BYTES = 2_000
"""Of the place of a report; a longer one is left out."""


class Event(StrEnum):
    """What happened."""

    COMPLETED = "job.completed"
    """Every item has a result or an error of its own."""
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"
    EXPIRED = "job.expired"
    PROGRESS = "job.progress"
    """A percentage that the caller chose was reached."""
    MODEL_CREATED = "model.created"
    """The model that a compression made is registered."""
    RUN_COMPLETED = "run.completed"
    """The sink holds every row."""
    RUN_FAILED = "run.failed"
    SCHEDULE_DRIFT = "schedule.drift"
    """Results moved further than the schedule's thresholds since the run before."""


EVENT_OF = {
    JobState.SUCCEEDED: Event.COMPLETED,
    JobState.FAILED: Event.FAILED,
    JobState.CANCELLED: Event.CANCELLED,
    JobState.EXPIRED: Event.EXPIRED,
}
"""The event that a terminal state is announced by."""


class Links(BaseModel):
    """Where to go on: `client.job(link)` and `batchmill jobs show LINK` take them."""

    model_config = ConfigDict(frozen=True)

    job: str
    retry_of: str | None


class CreatedModel(BaseModel):
    """What a compression made."""

    model_config = ConfigDict(frozen=True)

    model: str
    """`name@version`."""
    digest: str
    """SHA-256 over the manifest of its files."""
    verdict: Verdict
    """`rejected` where it missed what was asked of it: then only `name@version` names it."""


class JobData(BaseModel):
    """A job as a webhook tells of it: no input, no output."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    state: JobState
    model: str
    task: Task
    percent: int | None
    """Of `job.progress`."""
    created: CreatedModel | None = None
    """Of `model.created`."""
    counts: JobCounts
    error_code: str | None
    error_message: str | None
    """Its beginning, where it is long."""
    metadata: dict[str, Any] | None
    """As submitted; None where it takes more than 8,000 bytes: the job has it."""
    created_at: datetime
    finished_at: datetime | None
    links: Links


class RunLinks(BaseModel):
    """Where to go on: `client.job(link)` and `batchmill jobs show LINK` take them."""

    model_config = ConfigDict(frozen=True)

    job: str | None
    """None where the run came to none."""


class RunData(BaseModel):
    """A run as a webhook tells of it: no row, no address of its source or its sink."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    schedule: str | None
    """None for a run of a caller's own."""
    due_at: datetime | None
    state: RunState
    model: str
    """`name@version` once the run has a job; before as its caller wrote it."""
    changes: Changes | None
    drift: Drift | None
    report: str | None
    """Where its HTML report is."""
    error_code: str | None
    error_message: str | None
    """Its beginning, where it is long."""
    metadata: dict[str, Any] | None
    """As its caller gave it; None where it takes more than 8,000 bytes."""
    created_at: datetime
    finished_at: datetime | None
    links: RunLinks


class EventBody(BaseModel):
    """The body of a webhook, in the form that Standard Webhooks 1.0 recommends."""

    model_config = ConfigDict(frozen=True)

    type: Event
    timestamp: datetime
    """When it became true, by the database's clock."""
    data: JobData | RunData
    """A run, for `run.completed`, `run.failed` and `schedule.drift`."""

    @classmethod
    def of(
        cls,
        event: Event,
        info: JobInfo,
        timestamp: datetime,
        percent: int | None = None,
        created: CreatedModel | None = None,
    ) -> "EventBody":
        """What an event of a job is announced by."""
        return cls(
            type=event,
            timestamp=timestamp,
            data=JobData(
                id=info.id,
                state=info.state,
                model=info.model,
                task=info.task,
                percent=percent,
                created=created,
                counts=info.counts,
                error_code=info.error_code,
                error_message=info.error_message and _cut(info.error_message),
                metadata=_short(info.metadata),
                created_at=info.created_at,
                finished_at=info.finished_at,
                links=Links(job=job_link(info.id), retry_of=info.retry_of and job_link(info.retry_of)),
            ),
        )

    @classmethod
    def of_run(cls, event: Event, run: RunInfo, model: str, timestamp: datetime) -> "EventBody":
        """What an event of a run is announced by."""
        return cls(
            type=event,
            timestamp=timestamp,
            data=RunData(
                id=run.id,
                schedule=run.schedule,
                due_at=run.due_at,
                state=run.state,
                model=model,
                changes=run.changes,
                drift=run.drift,
                report=shown(run.report) if run.report and _size(run.report) <= MAX_LINK_BYTES else None,
                error_code=run.error_code,
                error_message=run.error_message and _cut(run.error_message),
                metadata=_short(run.spec.metadata),
                created_at=run.created_at,
                finished_at=run.finished_at,
                links=RunLinks(job=run.job_id and job_link(run.job_id)),
            ),
        )


def encode(body: Mapping[str, Any]) -> bytes:
    """The bytes that are signed and sent.

    Not orjson: a float such as 1e300 comes back from jsonb as an integer, which that refuses beyond 64 bits.
    """
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _short(metadata: dict[str, Any]) -> dict[str, Any] | None:
    return metadata if len(encode(metadata)) <= MAX_METADATA_BYTES else None


def _size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())


def _cut(message: str) -> str:
    """As much of a message as its part of the body holds."""
    while _size(message) > MAX_MESSAGE_BYTES:
        message = message[: min(MAX_MESSAGE_BYTES, len(message) * 3 // 4)] + "…"
    return message


def job_link(job_id: UUID) -> str:
    """A job as a link."""
    return f"{SCHEME}{job_id}"
