"""Compressions brought to an end through the storage layer: no worker, no step."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from contracts.compression import Criterion, Measurement, Report, Stage, StepResult, Training, TrainingPoint
from contracts.models import ArtifactFile
from contracts.names import COMPRESSION_POOL
from contracts.recipes import Dataset
from storage import claims, compressions, shards
from storage.counting import ShardOutcome
from storage.database import Database
from storage.shards import Lease
from tests.jobs import store

ROWS = Dataset(file=ArtifactFile(path="rows.jsonl", sha256="ab" * 32, size=1), rows=10)
WEIGHTS = ArtifactFile(path="model.safetensors", sha256="cd" * 32, size=30_000_000)


def claim(database: Database, lease: timedelta = timedelta(minutes=1)) -> Lease:
    with database.transaction() as connection:
        found = claims.claim(connection, pool=COMPRESSION_POOL, worker="test", lease=lease)
    assert found is not None
    return found


def report(job_id: UUID, parent: str = "model@1", **changes: Any) -> Report:
    """A report of one step, with made-up figures."""
    before = Measurement(
        size_bytes=91_000_000,
        parameters=22_700_000,
        nonzeros=22_700_000,
        memory_bytes=120_000_000,
        load_seconds=0.5,
        latency_p50=0.004,
        latency_p95=0.006,
        throughput=160.0,
        tokens_per_second=9000.0,
        budget_tokens=2048,
    )
    after = before.model_copy(update={"size_bytes": 30_000_000, "throughput": 120.0})
    values: dict[str, Any] = {
        "job": job_id,
        "parent": parent,
        "model": "to be registered",
        "task": "embed",
        "recipe": [{"step": "quantize", "method": "nf4"}],
        "verdict": "accepted",
        "rows": 10,
        "stages": [
            Stage(title=parent, size_bytes=91_000_000, quality={}, fidelity={}, measurement=before),
            Stage(
                title="quantize nf4",
                size_bytes=30_000_000,
                quality={},
                fidelity={"fidelity": 0.975},
                loss=0.025,
                measurement=after,
            ),
        ],
        "results": [
            StepResult(
                files=[WEIGHTS],
                digest="d",
                format="torch",
                quantization="nf4",
                size_bytes=30_000_000,
                seconds=2.5,
                notes=["16 weights stay as they are."],
                training=Training(
                    points=[
                        TrainingPoint(update=update, epoch=1, loss=0.5, held_out_loss=loss, learning_rate=1e-4)
                        for update, loss in ((0, 0.4), (30, 0.125))
                    ],
                    stopped="early",
                    kept_update=30,
                ),
            )
        ],
        "sensitivity": [],
        "criteria": [Criterion(name="fidelity", asked=0.9, found=0.975, met=True)],
        "notes": ["quantize nf4 made the model slower here: 120 inputs/s, before 160."],
        "machine": {"cores": 2},
    }
    return Report.model_validate(values | changes)


def result(**changes: Any) -> dict[str, Any]:
    """What `compressions.finish` is told of a model."""
    values: dict[str, Any] = {
        "source": "made of model@1",
        "task": "embed",
        "quantization": "nf4",
        "engine": "embed",
        "pool": "default",
        "digest": "digest of the result",
        "files": [WEIGHTS],
        "memory_bytes": 30_000_000,
        "rejected": False,
    }
    return values | changes


def close(database: Database, lease: Lease, outcome: ShardOutcome | None = None) -> None:
    """Store an output for each input that did not fail, and close the shard."""
    outcome = outcome or ShardOutcome({})
    good = [input_id for input_id in lease.input_ids if input_id not in outcome.errors]
    store(database, lease.target_id, lease.shard_id, good, outputs=[{"made": input_id} for input_id in good])
    with database.transaction() as connection:
        shards.close(connection, lease, outcome)


def complete(database: Database, html: ArtifactFile | None = None, **changes: Any) -> str:
    """Do what a worker does at the end of the next compression; the model's reference."""
    lease = claim(database)
    with database.transaction() as connection:
        verdict = "rejected" if changes.get("rejected") else "accepted"
        found = report(lease.job_id, verdict=verdict)
        spec = compressions.finish(connection, lease, report=found, html=html, **result(**changes))
    close(database, lease)
    return spec.reference
