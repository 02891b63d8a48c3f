"""How a recipe becomes a job: its prefixes are the items, all in one shard, and one transaction holds everything."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from contracts.canonical import canonicalize, digest
from contracts.compression import CompressionSpec
from contracts.models import ModelSpec
from contracts.names import COMPRESSION_POOL
from contracts.params import COMPRESS
from contracts.states import Priority
from producer.submission import Accepted, find_listener, holder_of, seal
from storage import compressions, inputs, jobs, models
from storage.database import Database
from storage.inputs import Line


@dataclass(frozen=True)
class Terms:
    """What is asked of the job, whatever it makes."""

    metadata: Mapping[str, Any]
    idempotency_key: str | None
    expires_in: timedelta | None
    callback_url: str | None


def content_digest(parent: ModelSpec, spec: CompressionSpec) -> bytes:
    """What a submission is, for an idempotency key: the model, what it becomes, and how that is judged."""
    asked = spec.model_dump(mode="json", exclude={"teachers"})  # which follow from the rest
    return hashlib.sha256(canonicalize([parent.id, dict(COMPRESS), asked])).digest()


def standing(database: Database, parent: ModelSpec, spec: CompressionSpec, terms: Terms) -> Accepted | None:
    """The job that stands under the key, if there is one.

    Raises:
        IdempotencyConflict: It has other content.
        RefusedUrl: The callback's URL is none that webhooks are sent to.
        UnknownEndpoint: No endpoint is registered for it, or it is disabled.
    """
    with database.transaction() as connection:
        find_listener(connection, terms.callback_url)
        holder = terms.idempotency_key and jobs.key_holder(connection, terms.idempotency_key)
    return holder_of(holder, content_digest(parent, spec), str(terms.idempotency_key)) if holder else None


def submit(
    database: Database, parent: ModelSpec, spec: CompressionSpec, terms: Terms, *, traceparent: str | None = None
) -> Accepted:
    """Store a compression whole, or nothing of it.

    Raises:
        IdempotencyConflict: The key belongs to a job with other content.
        RefusedUrl: The callback's URL is none that webhooks are sent to.
        UnknownEndpoint: No endpoint is registered for it, or it is disabled.
        DatabaseUnavailable: Postgres does not answer.
    """
    with database.transaction() as connection:
        target_id = models.make_target(connection, parent, COMPRESS)
        job_id = jobs.open_job(
            connection,
            target_id=target_id,
            pool=COMPRESSION_POOL,
            priority=Priority.NORMAL,
            metadata=terms.metadata,
            listener=find_listener(connection, terms.callback_url),
            traceparent=traceparent,
        )
        content = content_digest(parent, spec)
        if (key := terms.idempotency_key) is not None:
            holder = jobs.claim_key(connection, job_id, key, content)
            if holder.job_id != job_id:  # someone else was faster
                jobs.discard(connection, job_id)
                return holder_of(holder, content, key)
        compressions.create(connection, job_id, spec)
        lines = _lines(spec, str(job_id))
        jobs.count_received(connection, job_id, len(lines), content)
        inputs.append(connection, job_id, lines)
        shards = seal(connection, job_id, target_id, parent, COMPRESS, expires_in=terms.expires_in)
        return Accepted(job_id, shards)


def _lines(spec: CompressionSpec, nonce: str) -> list[Line]:
    """The recipe up to each of its steps, so that what two recipes begin with alike is computed once; and the end."""
    steps = [step.model_dump(mode="json") for step in spec.recipe]
    payloads: list[tuple[str, Any]] = [
        (f"step {number}", {"compress": steps[:number]}) for number in range(1, len(steps) + 1)
    ]
    payloads.append(("finish", {"finish": nonce}))
    lines = []
    for position, (custom_id, value) in enumerate(payloads):
        payload = canonicalize(value)
        lines.append(Line(position, custom_id, digest(payload), payload))
    return lines
