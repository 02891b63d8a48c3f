"""How lines become a job: store them in chunks, then seal."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from contracts.errors import (
    BatchmillError,
    DuplicateCustomId,
    IdempotencyConflict,
)
from contracts.models import ModelSpec
from contracts.params import compresses, extra_tokens, pass_tokens
from contracts.states import Priority
from producer.incoming import ContentDigest, chunks
from storage import endpoints, inputs, jobs, models, oldjobs, plans, sealing
from storage.database import Database
from storage.inputs import Line
from storage.jobs import Listener

SHARD_SECONDS = 0.75
"""What a shard should take, on the fastest device on which the model was measured."""
SHARD_TOKENS = 16_384
"""What a shard holds when the model was measured nowhere yet."""
SHARD_INPUTS = 5_000


@dataclass(frozen=True)
class Submission:
    """What a caller asks for."""

    model: ModelSpec
    params: Mapping[str, Any]
    priority: Priority
    metadata: Mapping[str, Any]
    idempotency_key: str | None
    expires_in: timedelta | None = None
    """From the moment at which it is sealed."""
    callback_url: str | None = None
    progress_at: tuple[int, ...] = ()
    traceparent: str | None = None
    """Of the trace that its shards belong to, as W3C Trace Context writes it."""


@dataclass(frozen=True)
class Accepted:
    """A job that stands."""

    job_id: UUID
    shards: int
    """Those that wait to be claimed for this call's sake: 0 when the job existed before."""


def submit(database: Database, submission: Submission, source: Iterable[Line]) -> Accepted:
    """Store a job whole, or leave nothing behind that counts.

    Raises:
        InvalidInput: A line is bad, or there is none.
        DuplicateCustomId: Two lines share an id.
        IdempotencyConflict: The key belongs to a job with other content.
        RefusedUrl: The callback's URL is none that webhooks are sent to.
        UnknownEndpoint: No endpoint is registered for it, or it is disabled.
        DatabaseUnavailable: Postgres does not answer.
    """
    content = ContentDigest(submission.model, submission.params)
    if submission.idempotency_key is not None:
        with database.transaction() as connection:
            holder = jobs.key_holder(connection, submission.idempotency_key)
        if holder is not None:
            for chunk in chunks(source):
                content.update(chunk)
            return holder_of(holder, content.value(), submission.idempotency_key)
    with database.transaction() as connection:
        opened = open_job(connection, submission)
    job_id = opened.job_id
    try:
        receive(database, job_id, source, content)
        accepted = _seal(database, submission, opened, content)
    except BaseException:
        # Whatever ended it, the caller's own generator included: what was received must not count. Where even this
        # fails, the job never leaves `receiving`, and maintenance removes it.
        with suppress(BatchmillError):
            discard(database, job_id)
        raise
    if accepted.job_id != job_id:
        oldjobs.delete_items(database, job_id)
    return accepted


@dataclass(frozen=True)
class Opened:
    """A job that receives lines."""

    job_id: UUID
    target_id: int


def open_job(connection: Connection, submission: Submission) -> Opened:
    """A job that receives what is asked for.

    Raises:
        RefusedUrl: The callback's URL is none that webhooks are sent to.
        UnknownEndpoint: No endpoint is registered for it, or it is disabled.
    """
    listener = find_listener(connection, submission.callback_url, submission.progress_at)
    target_id = models.make_target(connection, submission.model, submission.params)
    job_id = jobs.open_job(
        connection,
        target_id=target_id,
        pool=submission.model.pool,
        priority=submission.priority,
        metadata=submission.metadata,
        listener=listener,
        traceparent=submission.traceparent,
    )
    return Opened(job_id, target_id)


def discard(database: Database, job_id: UUID) -> None:
    """Remove a job that is still being received, and its lines."""
    with database.transaction() as connection:
        discarded = jobs.discard(connection, job_id)
    if discarded:
        oldjobs.delete_items(database, job_id)


def find_listener(
    connection: Connection, callback_url: str | None, progress_at: tuple[int, ...] = ()
) -> Listener | None:
    """Who hears of a job with this callback.

    Raises:
        RefusedUrl: The URL is none that webhooks are sent to.
        UnknownEndpoint: No endpoint is registered for it, or it is disabled.
    """
    if callback_url is None:
        return None
    return Listener(callback_url, endpoints.find(connection, callback_url).id, progress_at)


def passed_over(source: Iterator[Line], content: ContentDigest, arrived: jobs.Arrived) -> bool:
    """Draw the lines that have arrived, without storing them; whether they are the ones that arrived."""
    for chunk in chunks(islice(source, arrived.lines)):
        content.update(chunk)
    return arrived.lines == 0 or content.value() == arrived.content_digest


def receive(
    database: Database,
    job_id: UUID,
    source: Iterable[Line],
    content: ContentDigest,
    noted: Callable[[Connection], None] = lambda _: None,
) -> None:
    """Store chunk after chunk; while one is on its way, the next is read and hashed.

    Args:
        database: Where the job is.
        job_id: It is being received.
        source: Lines that have not arrived.
        content: Has taken in those that have.
        noted: Ends the transaction of each chunk; what it raises undoes the chunk, and ends the reception.
    """

    def store(chunk: list[Line], digest: bytes) -> None:
        # Sealing waits for the disk, and sees that all of it is there.
        with database.transaction(durable=False) as connection:
            jobs.count_received(connection, job_id, len(chunk), digest, before=chunk[0].position)
            inputs.append(connection, job_id, chunk)
            noted(connection)

    with ThreadPoolExecutor(1, "submission") as writer:
        stored: Future[None] | None = None
        for chunk in chunks(source):
            content.update(chunk)
            if stored is not None:
                stored.result()
            stored = writer.submit(store, chunk, content.value())
        if stored is not None:
            stored.result()


def _seal(database: Database, submission: Submission, opened: Opened, content: ContentDigest) -> Accepted:
    with database.transaction() as connection:
        key, job_id = submission.idempotency_key, opened.job_id
        if key is not None:
            holder = jobs.claim_key(connection, job_id, key, content.value())
            if holder.job_id != job_id:
                # Someone else sealed a job under this key while this one was being received.
                jobs.discard(connection, job_id)
                return holder_of(holder, content.value(), key)
        return Accepted(job_id, seal_whole(connection, opened, submission, content.lines))


def seal_whole(connection: Connection, opened: Opened, submission: Submission, lines: int) -> int:
    """Seal a job that so many lines have arrived of; how many shards it is cut into.

    Raises:
        DuplicateCustomId: Two lines share an id.
        DatabaseUnavailable: Not all lines are there, as the server crashed.
    """
    jobs.check_received(connection, opened.job_id, lines)
    if (twice := inputs.duplicate_custom_id(connection, opened.job_id)) is not None:
        custom_id, first, last = twice
        raise DuplicateCustomId(
            f"the custom id {custom_id!r} is used at least twice, by items {first + 1} and {last + 1}; "
            "give each item an id of its own, or none"
        )
    return seal(
        connection,
        opened.job_id,
        opened.target_id,
        submission.model,
        submission.params,
        expires_in=submission.expires_in,
    )


def seal(
    connection: Connection,
    job_id: UUID,
    target_id: int,
    model: ModelSpec,
    params: Mapping[str, Any],
    *,
    expires_in: timedelta | None = None,
) -> int:
    """Seal a job that was received, cut into shards that suit its model; how many these are."""
    fastest = plans.fastest(connection, model.id)
    # Where a full micro-batch takes longer than a shard should, as it does when texts are generated, it is one shard.
    measured = fastest and max(
        int(fastest.tokens_per_second * SHARD_SECONDS), pass_tokens(fastest.tokens, model.task, params), 1024
    )
    shard_tokens = None if compresses(params) else measured or SHARD_TOKENS  # one worker runs a recipe, step by step
    return sealing.seal(
        connection,
        job_id,
        target_id,
        shard_tokens=shard_tokens,
        shard_inputs=SHARD_INPUTS,
        extra_tokens=extra_tokens(model.task, params),
        expires_in=expires_in,
    )


def holder_of(holder: jobs.KeyHolder, content: bytes, key: str) -> Accepted:
    """The job that holds a key, for one who submits the same under it.

    Raises:
        IdempotencyConflict: It has other content.
    """
    if holder.content_digest != content:
        raise IdempotencyConflict(
            f"idempotency key {key!r} belongs to job {holder.job_id}, which has other content; "
            "use another key for other inputs"
        )
    return Accepted(holder.job_id, 0)
