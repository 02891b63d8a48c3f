"""What a webhook says: the events of a job, and the body that announces one."""

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
from contracts.states import JobState

SCHEME = "batchmill://jobs/"
MAX_BODY_BYTES = 20_000
"""What Standard Webhooks 1.0 asks a body to stay below; the parts that users fill are bounded so that it does."""
MAX_METADATA_BYTES = 8_000
MAX_MESSAGE_BYTES = 4_000


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


class EventBody(BaseModel):
    """The body of a webhook, in the form that Standard Webhooks 1.0 recommends."""

    model_config = ConfigDict(frozen=True)

    type: Event
    timestamp: datetime
    """When it became true, by the database's clock."""
    data: JobData

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
                metadata=info.metadata if len(encode(info.metadata)) <= MAX_METADATA_BYTES else None,
                created_at=info.created_at,
                finished_at=info.finished_at,
                links=Links(job=job_link(info.id), retry_of=info.retry_of and job_link(info.retry_of)),
            ),
        )


def encode(body: Mapping[str, Any]) -> bytes:
    """The bytes that are signed and sent.

    Not orjson: a float such as 1e300 comes back from jsonb as an integer, which that refuses beyond 64 bits.
    """
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _cut(message: str) -> str:
    """As much of a message as its part of the body holds."""
    while len(json.dumps(message, ensure_ascii=False).encode()) > MAX_MESSAGE_BYTES:
        message = message[: min(MAX_MESSAGE_BYTES, len(message) * 3 // 4)] + "…"
    return message


def job_link(job_id: UUID) -> str:
    """A job as a link."""
    return f"{SCHEME}{job_id}"
