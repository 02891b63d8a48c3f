"""Events: rows that are written in the transaction that makes them true."""

from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from contracts.events import CreatedModel, Event, EventBody
from storage import jobs

_ANNOUNCE = text("""
    INSERT INTO deliveries (job_id, endpoint_id, url, event, percent, body)
    SELECT id, endpoint_id, callback_url, :event, CAST(:percent AS smallint), :body
    FROM jobs WHERE id = :job_id AND endpoint_id IS NOT NULL
    ON CONFLICT DO NOTHING
""").bindparams(bindparam("body", type_=JSONB))


_REACHED = text("""
    SELECT threshold FROM jobs, unnest(progress_at) AS threshold
    WHERE id = :id AND endpoint_id IS NOT NULL
      AND (cached + computed + failed) * 100 >= threshold * distinct_inputs
    ORDER BY threshold
""")


def announce(
    connection: Connection,
    job_id: UUID,
    event: Event,
    percent: int | None = None,
    created: CreatedModel | None = None,
) -> None:
    """Note that the job's callback is to hear of an event; nothing where it has none, or was told already."""
    wanted = connection.execute(
        text("SELECT now() FROM jobs WHERE id = :id AND endpoint_id IS NOT NULL"), {"id": job_id}
    ).scalar_one_or_none()
    if wanted is None:
        return
    body = EventBody.of(event, jobs.get(connection, job_id), wanted, percent, created)
    connection.execute(
        _ANNOUNCE,
        {"job_id": job_id, "event": str(event), "percent": percent, "body": body.model_dump(mode="json")},
    )


def announce_progress(connection: Connection, job_id: UUID) -> None:
    """Announce each percentage that the caller chose and that the job has reached, once."""
    for percent in connection.execute(_REACHED, {"id": job_id}).scalars().all():
        announce(connection, job_id, Event.PROGRESS, percent)
