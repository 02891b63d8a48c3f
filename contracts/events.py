"""What a webhook says: the events of a job, and the body that announces one."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from contracts.jobs import JobCounts, JobInfo
from contracts.names import Task
from contracts.states import JobState

SCHEME = "batchmill://jobs/"


class Event(StrEnum):
    """What happened."""

    COMPLETED = "job.completed"
    """Every item has a result or an error of its own."""
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"
    EXPIRED = "job.expired"
    PROGRESS = "job.progress"
    """A percentage that the caller chose was reached."""


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


class JobData(BaseModel):
    """A job as a webhook tells of it: no input, no output."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    state: JobState
    model: str
    task: Task
    percent: int | None
    """Of `job.progress`."""
    counts: JobCounts
    error_code: str | None
    error_message: str | None
    metadata: dict[str, Any]
    created_at: datetime
    finished_at: datetime | None
    links: Links


class EventBody(BaseModel):
    """The body of a webhook, in the form that Standard Webhooks 1.0 recommends."""

    model_config = ConfigDict(frozen=True)

    type: Event
    timestamp: datetime
    """When it became true, by the database's clock."""
    data: JobData

    @classmethod
    def of(cls, event: Event, info: JobInfo, timestamp: datetime, percent: int | None = None) -> "EventBody":
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
                counts=info.counts,
                error_code=info.error_code,
                error_message=info.error_message,
                metadata=info.metadata,
                created_at=info.created_at,
                finished_at=info.finished_at,
                links=Links(job=job_link(info.id), retry_of=info.retry_of and job_link(info.retry_of)),
            ),
        )


def job_link(job_id: UUID) -> str:
    """A job as a link."""
    return f"{SCHEME}{job_id}"
