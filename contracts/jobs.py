"""What a job says of itself."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, computed_field

from contracts.compression import StepProgress
from contracts.names import Task
from contracts.params import compresses
from contracts.states import JobState, Priority


class JobCounts(BaseModel):
    """How far a job is. `items` are lines; every other figure counts distinct inputs."""

    model_config = ConfigDict(frozen=True)

    items: int = 0
    distinct: int = 0
    cached: int = 0
    """Results that a shard of another job computed."""
    computed: int = 0
    """Results that a shard of this job computed."""
    failed: int = 0
    truncated: int = 0
    """Results, cached or computed, of inputs that were cut to the model's limit."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def waiting(self) -> int:
        """Inputs with neither a result nor an error."""
        return self.distinct - self.cached - self.computed - self.failed


class JobStats(BaseModel):
    """What the micro-batches of a job looked like."""

    model_config = ConfigDict(frozen=True)

    micro_batches: float = 0.0
    """Forward passes; one that served several shards counts for each by its share."""
    real_tokens: int = 0
    padded_tokens: int = 0
    """Tokens with padding: the longest times the number of rows, summed."""
    budget_tokens: int = 0
    """What the passes could have held, summed."""

    @property
    def fill(self) -> float:
        """Padded tokens over the budget, 0 to 1; 0 when nothing ran."""
        return self.padded_tokens / self.budget_tokens if self.budget_tokens else 0.0

    @property
    def padding_waste(self) -> float:
        """The share of padding in what was computed, 0 to 1."""
        return 1 - self.real_tokens / self.padded_tokens if self.padded_tokens else 0.0


class JobInfo(BaseModel):
    """A job as its row says."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    state: JobState
    model: str
    """`name@version`."""
    task: Task
    params: dict[str, Any]
    pool: str
    priority: Priority
    metadata: dict[str, Any]
    idempotency_key: str | None
    retry_of: UUID | None
    """The job whose failed items it computes again."""
    callback_url: str | None
    counts: JobCounts
    stats: JobStats
    error_code: str | None
    """Why it failed, or why it was paused."""
    error_message: str | None
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    progress: StepProgress | None = None
    """Of a compression: how far its step is."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def operation(self) -> str:
        """What is done by the model: its task, or `compress`."""
        return "compress" if compresses(self.params) else str(self.task)
