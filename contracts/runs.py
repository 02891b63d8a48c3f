"""Runs: rows of a source are scored by a model and written to a sink; a schedule does so whenever it is due."""

from datetime import datetime
from typing import Any, Literal, TypeAlias
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from contracts.names import Task
from contracts.sinks import Sink
from contracts.sources import Source
from contracts.specs import Spec
from contracts.states import Priority, RunState

Overlap: TypeAlias = Literal["skip", "queue", "cancel"]
"""What becomes of a run that is due while the one before is open: it is skipped, waits, or ends the other."""
CatchUp: TypeAlias = Literal["latest", "all", "none"]
"""Which of the runs are made up for that were due while nothing could begin them."""
OnBad: TypeAlias = Literal["stop", "skip"]
"""What a row does that cannot be taken: it ends the run before anything is written, or is left out and counted."""


class Thresholds(Spec):
    """How far results may move from one run to the next before `schedule.drift` is announced; None asks nothing."""

    psi: float | None = Field(default=0.2, gt=0)
    """Population stability index of labels or numbers; 0.1 is commonly read as some movement, 0.25 as much."""
    ks: float | None = Field(default=None, gt=0, le=1)
    """Kolmogorov–Smirnov statistic of numbers: the largest distance of the two cumulative distributions."""
    cosine: float | None = Field(default=0.05, gt=0, le=2)
    """Mean cosine distance between the embeddings that an id had before and has now."""


class RunSpec(Spec):
    """What a run is to do."""

    source: Source
    model: str
    """`name`, for its newest version when the run begins, or `name@version`."""
    task: Task | None = None
    """What the model has to compute; a run of a model of another task fails."""
    params: dict[str, Any] = Field(default_factory=dict)
    sink: Sink
    priority: Priority = Priority.BULK
    metadata: dict[str, Any] = Field(default_factory=dict)
    callback_url: str | None = None
    """Hears `run.completed`, `run.failed` and `schedule.drift`."""
    expires_in: float | None = Field(default=None, gt=0)
    """Seconds that its job may take, once everything is read."""
    progress_at: tuple[int, ...] = ()
    """Percentages at which the callback hears how far the job is, and then of the job's end as well."""
    on_bad: OnBad = "stop"
    report: str | None = None
    """Where the HTML report goes: a path or an fsspec URL, with `{date}` as in a sink's; none when not given."""
    thresholds: Thresholds = Thresholds()


class Changes(BaseModel):
    """What is different from the run before, in rows; by ids, or where a source has none by inputs."""

    model_config = ConfigDict(frozen=True)

    rows: int
    new: int
    changed: int
    """Ids with another input; always 0 for rows without ids."""
    removed: int
    cached: int
    """Distinct inputs whose result was there already."""
    computed: int
    failed: int
    """Rows with an error in place of an output."""
    bad: int = 0
    """Rows of the source that were left out, as they could not be taken."""
    since: UUID | None = None
    """The run that this one is compared with; without one every row is new."""


class Drift(BaseModel):
    """How far results moved since the run before; what does not apply to the task is None."""

    model_config = ConfigDict(frozen=True)

    psi: float | None = None
    ks: float | None = None
    cosine: float | None = None
    rows: int
    """That were looked at: at most so many of each run."""
    over: tuple[Literal["psi", "ks", "cosine"], ...] = ()
    """Those beyond their thresholds, and beyond what chance alone makes of so few rows."""


class RunProgress(BaseModel):
    """How far reading and writing are; what is not known beforehand is None."""

    model_config = ConfigDict(frozen=True)

    rows_read: int = 0
    bytes_read: int = 0
    rows: int | None = None
    bytes: int | None = None
    bad: int = 0
    rows_written: int = 0


class RunInfo(BaseModel):
    """A run as its row says."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    schedule: str | None
    """The name of the schedule that it is of."""
    due_at: datetime | None
    state: RunState
    spec: RunSpec
    job_id: UUID | None
    progress: RunProgress
    changes: Changes | None
    drift: Drift | None
    report: str | None
    """Where its HTML report is, once it is written."""
    error_code: str | None
    error_message: str | None
    """Of an open run: why it rests; of one that succeeded: why it has no report."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class ScheduleInfo(BaseModel):
    """A schedule as its row says."""

    model_config = ConfigDict(frozen=True)

    name: str
    cron: str
    timezone: str
    spec: RunSpec
    overlap: Overlap
    catch_up: CatchUp
    next_due_at: datetime | None
    """None while it is paused."""
    paused_at: datetime | None
    created_at: datetime
    last: RunInfo | None = None
    """The newest of its runs."""
    problem: str | None = None
    """What its next run would fail of, as things stand: a model that was removed."""
