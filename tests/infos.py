"""What a job's row and a worker's report say, made by hand."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from contracts.jobs import JobCounts, JobInfo, JobStats
from contracts.states import JobState
from storage.workers import SeenWorker

BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def info(**changes: Any) -> JobInfo:
    """A job that succeeded within four seconds."""
    values = {
        "id": UUID(int=1),
        "state": JobState.SUCCEEDED,
        "model": "small@1",
        "task": "embed",
        "params": {},
        "pool": "default",
        "priority": "normal",
        "metadata": {},
        "idempotency_key": None,
        "retry_of": None,
        "callback_url": None,
        "counts": JobCounts(items=1200, distinct=1000, cached=300, computed=690, failed=10, truncated=4),
        "stats": JobStats(micro_batches=12.4, real_tokens=9000, padded_tokens=10_000, budget_tokens=20_000),
        "error_code": None,
        "error_message": None,
        "created_at": BEGIN,
        "queued_at": BEGIN + timedelta(seconds=1),
        "started_at": BEGIN + timedelta(seconds=2),
        "finished_at": BEGIN + timedelta(seconds=6),
        "expires_at": None,
    }
    return JobInfo.model_validate(values | changes)


def worker(**changes: Any) -> SeenWorker:
    """A worker that was heard of when everything began."""
    values: dict[str, Any] = {
        "name": "host:17",
        "pool": "default",
        "device": "cpu",
        "slots": 4,
        "held": 2,
        "models": ["small@1"],
        "model_bytes": 500_000_000,
        "memory_limit": 1_000_000_000,
        "inputs": 0,
        "tokens": 0,
        "started_at": BEGIN,
        "seen_at": BEGIN,
        "disk_free": None,
    }
    return SeenWorker(**(values | changes))
