"""Events: rows that are written in the transaction that makes them true."""

import logging
from contextlib import suppress
from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from contracts.errors import JobNotFound, RefusedUrl
from contracts.events import CreatedModel, Event, EventBody
from contracts.runs import RunInfo
from storage import endpoints, jobs

log = logging.getLogger(__name__)

_ANNOUNCE = text("""
    INSERT INTO deliveries (job_id, endpoint_id, url, event, percent, body)
    SELECT id, endpoint_id, callback_url, :event, CAST(:percent AS smallint), :body
    FROM jobs WHERE id = :job_id AND endpoint_id IS NOT NULL
    ON CONFLICT DO NOTHING
""").bindparams(bindparam("body", type_=JSONB))
_ANNOUNCE_RUN = text("""
    INSERT INTO deliveries (run_id, endpoint_id, url, event, body)
    VALUES (:run_id, :endpoint_id, :url, :event, :body)
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


def announce_run(connection: Connection, run: RunInfo, event: Event) -> None:
    """The same of a run; as it stands now, in the transaction that changed it."""
    url = run.spec.callback_url
    if url is None:
        return
    try:
        endpoint_id = endpoints.registered(connection, url)
    except RefusedUrl:
        endpoint_id = None
    if endpoint_id is None:
        log.warning("run %s: %s is announced to nobody: its callback is not registered any more", run.id, event)
        return
    model = run.spec.model
    if run.job_id is not None:
        with suppress(JobNotFound):
            model = jobs.get(connection, run.job_id).model
    wanted = connection.execute(text("SELECT now()")).scalar_one()
    connection.execute(
        _ANNOUNCE_RUN,
        {
            "run_id": run.id,
            "endpoint_id": endpoint_id,
            "url": url,
            "event": str(event),
            "body": EventBody.of_run(event, run, model, wanted).model_dump(mode="json"),
        },
    )
