"""What a webhook endpoint and a delivery say of themselves; no secret among it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from contracts.states import DeliveryState


class Endpoint(BaseModel):
    """A receiver that was registered."""

    model_config = ConfigDict(frozen=True)

    id: int
    url: str
    created_at: datetime
    previous_until: datetime | None
    """Until then the secret before the last rotation signs as well."""
    disabled_at: datetime | None
    disabled_reason: str | None


class EndpointSummary(Endpoint):
    """A receiver with what became of its deliveries."""

    pending: int
    delivered: int
    dead: int


class Delivery(BaseModel):
    """One event on its way to one URL."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    """The `webhook-id` of every attempt."""
    job_id: UUID | None
    """None where a run was announced."""
    run_id: UUID | None
    endpoint_id: int
    url: str
    event: str
    percent: int | None
    """Of `job.progress`."""
    state: DeliveryState
    attempt: int
    """How often it was tried, or is being tried."""
    due_at: datetime
    """When the next attempt is due."""
    last_status: int | None
    """The HTTP status of the last answer."""
    last_error: str | None
    created_at: datetime
    finished_at: datetime | None


class DeliveryDetail(Delivery):
    """The same with what is sent."""

    body: dict[str, Any]
