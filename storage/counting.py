"""What a job says of inputs that have been dealt with: their errors, its counters, its end, and who hears of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT

from contracts.errors import ItemFailed
from contracts.events import Event
from contracts.itemcodes import ENGINE_FAULTS, ItemCode
from storage import control, events

BREAKER = 200
"""So many failures in a row that are the engine's fault pause a job: the model is broken, not its inputs."""
WORKER_LOST_WEIGHT = 25
"""How many other failures one counts for that cost several worker processes their lives."""


@dataclass(frozen=True)
class ShardOutcome:
    """What is left to say when every input of a shard has been dealt with."""

    errors: dict[int, ItemFailed]
    """By input id."""
    micro_batches: float = 0.0
    real_tokens: int = 0
    padded_tokens: int = 0
    budget_tokens: int = 0


_INSERT_ERROR = text("""
    INSERT INTO item_errors (job_id, input_id, code, message)
    VALUES (:job_id, :input_id, :code, :message) ON CONFLICT DO NOTHING
""")

# A result was computed by this job when this shard did, or one that was split into it and others.
_COUNT = text("""
    WITH found AS (
        SELECT count(*) FILTER (WHERE mine) AS computed, count(*) FILTER (WHERE NOT mine) AS cached,
               count(*) FILTER (WHERE truncated) AS truncated
        FROM (SELECT truncated, shard_id = :shard_id OR shard_id IN
                        (SELECT id FROM shards WHERE job_id = :job_id AND state = 'split') AS mine
              FROM results
              WHERE target_id = :target_id AND input_id = ANY(:input_ids) AND NOT input_id = ANY(:failed)) AS result
    )
    UPDATE jobs SET
        computed = jobs.computed + found.computed, cached = jobs.cached + found.cached,
        truncated = jobs.truncated + found.truncated, failed = jobs.failed + cardinality(:failed),
        failed_in_row = CASE WHEN found.computed > 0 THEN 0 ELSE failed_in_row + :faults END,
        micro_batches = micro_batches + :micro_batches, real_tokens = real_tokens + :real_tokens,
        padded_tokens = padded_tokens + :padded_tokens, budget_tokens = budget_tokens + :budget_tokens,
        open_shards = open_shards + :opened,
        state = CASE WHEN open_shards + :opened = 0 AND state IN ('running', 'paused') THEN 'succeeded' ELSE state END,
        finished_at = CASE WHEN open_shards + :opened = 0 AND state IN ('running', 'paused') THEN now()
                           ELSE finished_at END,
        error_code = CASE WHEN open_shards + :opened = 0 AND state = 'paused' THEN NULL ELSE error_code END,
        error_message = CASE WHEN open_shards + :opened = 0 AND state = 'paused' THEN NULL ELSE error_message END
    FROM found WHERE jobs.id = :job_id
    RETURNING jobs.state, failed_in_row, progress_at
""").bindparams(bindparam("input_ids", type_=ARRAY(BIGINT)), bindparam("failed", type_=ARRAY(BIGINT)))


def count(
    connection: Connection,
    *,
    job_id: UUID,
    shard_id: UUID,
    target_id: int,
    input_ids: Sequence[int],
    outcome: ShardOutcome,
    opened: int = -1,
) -> bool:
    """Note that inputs have a result or an error; the job is locked, and its shards say so already.

    Args:
        connection: In the transaction that changed the shard.
        job_id: Whose they are.
        shard_id: The shard that held them.
        target_id: What they were computed by.
        input_ids: Those that are dealt with now.
        outcome: The errors among them, and what the micro-batches looked like.
        opened: How many more of the job's shards are open now.

    Returns:
        Whether the job is terminal now.
    """
    errors = sorted(outcome.errors.items())
    if errors:
        connection.execute(
            _INSERT_ERROR,
            [{"job_id": job_id, "input_id": i, "code": e.item_code, "message": e.message} for i, e in errors],
        )
    state, in_row, progress_at = connection.execute(
        _COUNT,
        {
            "job_id": job_id,
            "shard_id": shard_id,
            "target_id": target_id,
            "input_ids": list(input_ids),
            "failed": [input_id for input_id, _ in errors],
            "faults": _weight(outcome.errors.values()),
            "opened": opened,
            "micro_batches": outcome.micro_batches,
            "real_tokens": outcome.real_tokens,
            "padded_tokens": outcome.padded_tokens,
            "budget_tokens": outcome.budget_tokens,
        },
    ).one()
    if progress_at:
        events.announce_progress(connection, job_id)
    if state == "succeeded":
        events.announce(connection, job_id, Event.COMPLETED)
        return True
    if in_row >= BREAKER and errors:
        last = errors[-1][1]
        control.trip(
            connection,
            job_id,
            "breaker",
            f"every input fails, the last of them with {last.item_code}: {last.message[:500]}; once the model or its "
            f"workers are mended: batchmill jobs resume {job_id}",
        )
    return False


def _weight(errors: Iterable[ItemFailed]) -> int:
    """What errors count towards the breaker; those that are the input's own fault count nothing."""
    codes = [error.item_code for error in errors]
    return sum(WORKER_LOST_WEIGHT if code == ItemCode.WORKER_LOST else code in ENGINE_FAULTS for code in codes)
