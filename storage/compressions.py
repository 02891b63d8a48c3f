"""Compressions: what a compression job is asked, how far its step is, and what came of it."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from contracts.compression import CompressionInfo, CompressionSpec, Report, StepProgress, Verdict
from contracts.errors import InvalidRequest, LeaseLost
from contracts.events import CreatedModel, Event
from contracts.models import ArtifactFile, ModelSpec
from storage import events, jobs, models, shards
from storage.shards import Lease

_CREATE = text("""
    INSERT INTO compressions (job_id, name, recipe, evaluate, accept, teachers)
    VALUES (:job_id, :name, :recipe, :evaluate, :accept, :teachers)
""").bindparams(
    *(bindparam(name, type_=JSONB(none_as_null=True)) for name in CompressionSpec.model_fields if name != "name")
)

_GET = text("""
    SELECT compressions.*, concat(models.name, '@', models.version) AS model
    FROM compressions LEFT JOIN models ON models.id = compressions.model_id WHERE job_id = :job_id
""")

# No lock: an answer that comes a moment too late tells of a step that did run.
_NOTE_PROGRESS = text("""
    UPDATE compressions SET progress = :progress
    WHERE job_id = :job_id
      AND EXISTS (SELECT FROM shards WHERE id = :shard_id AND state = 'leased' AND token = :token)
""").bindparams(bindparam("progress", type_=JSONB))

_IDLE = text("""
    SELECT extract(epoch FROM
                   clock_timestamp() - greatest(mine.started_at, teacher.queued_at, teacher.served_at))::float
    FROM jobs AS mine, jobs AS teacher WHERE mine.id = :job_id AND teacher.id = :teacher_id
""")

# Of two that came to a step at the same time, the one that was claimed first goes on.
_DONE_BY = text("""
    SELECT other.id FROM jobs AS mine JOIN jobs AS other ON other.target_id = mine.target_id AND other.id <> mine.id
        JOIN shards AS twin ON twin.job_id = other.id
    WHERE mine.id = :job_id AND twin.state = 'leased' AND twin.lease_expires_at > now()
      AND :input_id = ANY(twin.input_ids) AND (other.served_at, other.id) < (mine.served_at, mine.id)
    LIMIT 1
""")

_FINISH = text("""
    UPDATE compressions SET model_id = :model_id, verdict = :verdict, report = :report, html = :html, progress = NULL
    WHERE job_id = :job_id
""").bindparams(*(bindparam(name, type_=JSONB(none_as_null=True)) for name in ("report", "html")))


def create(connection: Connection, job_id: UUID, spec: CompressionSpec) -> None:
    """Note what a job is asked; in the transaction that opens or seals it, so that no one claims it without."""
    connection.execute(_CREATE, {"job_id": job_id, **_plain(spec)})


def get(connection: Connection, job_id: UUID) -> CompressionSpec:
    """What the job is asked.

    Raises:
        JobNotFound: There is no job of that id.
        InvalidRequest: It compresses nothing.
    """
    return _spec(_row(connection, job_id))


def info(connection: Connection, job_id: UUID) -> CompressionInfo:
    """All that is known of a compression.

    Raises:
        JobNotFound: There is no job of that id.
        InvalidRequest: It compresses nothing.
    """
    row = _row(connection, job_id)
    return CompressionInfo(
        job=row.job_id,
        spec=_spec(row),
        progress=row.progress and StepProgress.model_validate(row.progress),
        verdict=row.verdict,
        model=None if row.model_id is None else row.model,
        report=row.report and Report.model_validate(row.report),
        html=row.html and ArtifactFile.model_validate(row.html),
    )


def note_progress(connection: Connection, lease: Lease, progress: StepProgress) -> bool:
    """Note how far the step is; whether the lease still holds its shard: nothing is noted where it does not."""
    values = {"job_id": lease.job_id, "shard_id": lease.shard_id, "token": lease.token, "progress": _plain(progress)}
    return connection.execute(_NOTE_PROGRESS, values).rowcount > 0


def idle_seconds(connection: Connection, job_id: UUID, teacher_id: UUID) -> float:
    """For how long a compression has waited with nobody taking up work of its teacher's job."""
    found = connection.execute(_IDLE, {"job_id": job_id, "teacher_id": teacher_id}).scalar_one_or_none()
    return float(found or 0.0)


def done_by(connection: Connection, lease: Lease, input_id: int) -> UUID | None:
    """The other job, where there is one, that works on the same prefix of a recipe now and began before."""
    found = connection.execute(_DONE_BY, {"job_id": lease.job_id, "input_id": input_id}).scalar_one_or_none()
    return None if found is None else UUID(str(found))


def finish(
    connection: Connection,
    lease: Lease,
    *,
    report: Report | None,
    source: str,
    task: str,
    quantization: str,
    engine: str,
    pool: str,
    digest: str,
    files: list[ArtifactFile],
    memory_bytes: int,
    rejected: bool,
    html: ArtifactFile | None = None,
) -> ModelSpec:
    """Register the result, keep the report, and announce `model.created`; a job that has its model gives that again.

    Args:
        connection: In a transaction.
        lease: Of the job's shard; the job is locked to the end of the transaction.
        report: What was measured, if anything was; the reference of the model is put into it.
        source: Where the model comes from, in words.
        task: And the rest up to `memory_bytes`: as `storage.models.add` takes them.
        quantization: See there.
        engine: See there.
        pool: See there.
        digest: See there.
        files: See there.
        memory_bytes: See there.
        rejected: Whether it missed what was asked of it.
        html: The report as a page, in the artifact store.

    Raises:
        LeaseLost: The lease does not hold the shard any more; nothing was changed.
    """
    if not shards.held(connection, lease):
        raise LeaseLost(f"shard {lease.shard_id} is held by someone else by now")
    row = _row(connection, lease.job_id)
    if row.model_id is not None:
        return models.by_id(connection, row.model_id)
    spec = models.add(
        connection,
        name=row.name,
        source=source,
        revision=None,
        task=task,
        quantization=quantization,
        engine=engine,
        pool=pool,
        digest=digest,
        files=files,
        memory_bytes=memory_bytes,
        parent_id=models.get_target(connection, jobs.target_id(connection, lease.job_id)).model.id,
        recipe=row.recipe,
        rejected=rejected,
    )
    verdict: Verdict = report.verdict if report else "rejected" if rejected else "not evaluated"
    said = report and report.model_copy(update={"model": spec.reference})
    values = {"model_id": spec.id, "verdict": verdict, "report": said and _plain(said), "html": html and _plain(html)}
    connection.execute(_FINISH, {"job_id": lease.job_id, **values})
    created = CreatedModel(model=spec.reference, digest=spec.digest, verdict=verdict)
    events.announce(connection, lease.job_id, Event.MODEL_CREATED, created=created)
    return spec


def _row(connection: Connection, job_id: UUID) -> Row[Any]:
    row = connection.execute(_GET, {"job_id": job_id}).first()
    if row is None:
        found = jobs.get(connection, job_id)
        raise InvalidRequest(f"job {job_id} compresses nothing: it computes {found.operation} by {found.model}")
    return row


def _spec(row: Row[Any]) -> CompressionSpec:
    return CompressionSpec.model_validate({name: row._mapping[name] for name in CompressionSpec.model_fields})


def _plain(value: BaseModel) -> dict[str, Any]:
    """As JSON has it; by way of the text, which spells the floats out that jsonb has no number for."""
    plain: Mapping[str, Any] = json.loads(value.model_dump_json())
    return dict(plain)
