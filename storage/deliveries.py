"""Deliveries: webhook events on their way, claimed, tried, and tried again until they are delivered or dead."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from contracts.errors import DeliveryNotFound, InvalidRequest
from contracts.states import DeliveryState
from contracts.webhooks import Delivery, DeliveryDetail

_COLUMNS = ", ".join(f"deliveries.{name}" for name in Delivery.model_fields)


@dataclass(frozen=True, repr=False)
class Claim:
    """A delivery whose next attempt is ours, until it is due again."""

    id: UUID
    token: UUID
    attempt: int
    """1 for the first."""
    endpoint_id: int
    url: str
    event: str
    body: Mapping[str, Any]
    secrets: tuple[bytes, ...]
    """Encrypted; the newest first."""
    claimed_at: datetime
    """By the database's clock."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    id: UUID
    token: UUID
    state: DeliveryState
    """`pending` when it is to be tried again."""
    status: int | None
    """Of the answer, where there was one."""
    error: str | None
    delay: float = 0.0
    """Seconds until the next attempt."""


_CLAIM = text("""
    WITH due AS MATERIALIZED (
        SELECT waiting.id
        FROM (SELECT id FROM webhook_endpoints WHERE disabled_at IS NULL ORDER BY random()) AS endpoint
        LEFT JOIN unnest(CAST(:busy AS bigint[]), CAST(:free AS integer[])) AS lane (endpoint_id, free)
               ON lane.endpoint_id = endpoint.id
        CROSS JOIN LATERAL (
            SELECT id FROM deliveries
            WHERE endpoint_id = endpoint.id AND state = 'pending' AND due_at <= now()
            ORDER BY due_at LIMIT coalesce(lane.free, :fresh) FOR NO KEY UPDATE SKIP LOCKED
        ) AS waiting
        LIMIT :room
    )
    UPDATE deliveries SET token = :token, due_at = now() + :hold
    FROM due, webhook_endpoints AS endpoint
    WHERE deliveries.id = due.id AND endpoint.id = deliveries.endpoint_id
    RETURNING deliveries.id, attempt + 1 AS attempt, endpoint_id, deliveries.url, event, body, endpoint.secret,
              CASE WHEN endpoint.previous_until > now() THEN endpoint.previous_secret END AS previous_secret,
              now() AS claimed_at
""")


def claim(connection: Connection, *, free: Mapping[int, int], fresh: int, room: int, hold: timedelta) -> list[Claim]:
    """Take deliveries that are due, the longest due of each endpoint first, endpoints in no order.

    Whoever dies with a claim needs no rescue: it is due again when its hold is over. An attempt counts when its end is
    known, so that deliverers that die do not use the schedule up.

    Args:
        connection: A transaction.
        free: How many to take at most, by endpoint.
        fresh: The same for an endpoint that is not named.
        room: How many to take at most in all.
        hold: How long an attempt may take.
    """
    token = uuid4()
    rows = connection.execute(
        _CLAIM,
        {
            "busy": list(free),
            "free": list(free.values()),
            "fresh": fresh,
            "room": room,
            "hold": hold,
            "token": token,
        },
    )
    return [
        Claim(
            id=row.id,
            token=token,
            attempt=row.attempt,
            endpoint_id=row.endpoint_id,
            url=row.url,
            event=row.event,
            body=row.body,
            secrets=tuple(bytes(secret) for secret in (row.secret, row.previous_secret) if secret is not None),
            claimed_at=row.claimed_at,
        )
        for row in rows
    ]


# Rows are locked in the order of their ids, wherever several are: two that lock many never wait for each other.
_FINISH = text("""
    WITH outcome AS MATERIALIZED (
        SELECT deliveries.id, outcome.state, outcome.status, outcome.error, outcome.delay
        FROM deliveries JOIN unnest(
            CAST(:ids AS uuid[]), CAST(:tokens AS uuid[]), CAST(:states AS text[]), CAST(:statuses AS smallint[]),
            CAST(:errors AS text[]), CAST(:delays AS double precision[])
        ) AS outcome (id, token, state, status, error, delay) USING (id, token)
        WHERE deliveries.state = 'pending' ORDER BY deliveries.id FOR NO KEY UPDATE OF deliveries
    )
    UPDATE deliveries
    SET state = outcome.state, token = NULL, attempt = attempt + 1,
        last_status = outcome.status, last_error = outcome.error,
        due_at = CASE WHEN outcome.state = 'pending' THEN now() + outcome.delay * interval '1 second' ELSE due_at END,
        finished_at = CASE WHEN outcome.state = 'pending' THEN NULL ELSE now() END
    FROM outcome WHERE deliveries.id = outcome.id
""")


def finish(connection: Connection, outcomes: Sequence[Outcome]) -> int:
    """End claimed attempts: pending -> delivered, dead, or pending until a later time; how many still were ours."""
    if not outcomes:
        return 0
    return connection.execute(
        _FINISH,
        {
            "ids": [outcome.id for outcome in outcomes],
            "tokens": [outcome.token for outcome in outcomes],
            "states": [str(outcome.state) for outcome in outcomes],
            "statuses": [outcome.status for outcome in outcomes],
            "errors": [outcome.error for outcome in outcomes],
            "delays": [outcome.delay for outcome in outcomes],
        },
    ).rowcount


_RELEASE = text("""
    UPDATE deliveries SET token = NULL, due_at = now()
    WHERE id IN (
        SELECT id FROM deliveries JOIN unnest(CAST(:ids AS uuid[]), CAST(:tokens AS uuid[])) AS given (id, token)
                       USING (id, token)
        WHERE state = 'pending' ORDER BY id FOR NO KEY UPDATE OF deliveries
    )
""")


def release(connection: Connection, claims: Iterable[Claim]) -> int:
    """Give claims back untried; how many still were ours."""
    given = list(claims)
    if not given:
        return 0
    return connection.execute(
        _RELEASE, {"ids": [claim.id for claim in given], "tokens": [claim.token for claim in given]}
    ).rowcount


def bury_disabled(connection: Connection) -> int:
    """Give up what waits for disabled endpoints: pending -> dead, being tried or not; how many."""
    return connection.execute(
        text("""
            UPDATE deliveries
            SET state = 'dead', token = NULL, finished_at = now(),
                last_error = concat('the endpoint is disabled: ', endpoint.disabled_reason)
            FROM webhook_endpoints AS endpoint
            WHERE endpoint.id = deliveries.endpoint_id AND deliveries.id IN (
                SELECT deliveries.id FROM deliveries JOIN webhook_endpoints ON webhook_endpoints.id = endpoint_id
                WHERE disabled_at IS NOT NULL AND state = 'pending'
                ORDER BY deliveries.id FOR NO KEY UPDATE OF deliveries
            )
        """)
    ).rowcount


def replay(connection: Connection, delivery_id: UUID) -> None:
    """Send it again under the same id, with the whole schedule before it: delivered, dead -> pending.

    Raises:
        DeliveryNotFound: There is none of that id.
        InvalidRequest: Its endpoint is disabled, or it is pending anyway.
    """
    endpoint = connection.execute(
        text("""
            SELECT endpoint.id, endpoint.disabled_at FROM deliveries
            JOIN webhook_endpoints AS endpoint ON endpoint.id = endpoint_id WHERE deliveries.id = :id
        """),
        {"id": delivery_id},
    ).first()
    if endpoint is None:
        raise _not_found(delivery_id)
    if endpoint.disabled_at is not None:
        raise InvalidRequest(
            f"webhook endpoint {endpoint.id} is disabled: run `batchmill webhooks enable {endpoint.id}` first"
        )
    if not _replay(connection, "id = :id AND state <> 'pending'", {"id": delivery_id}):
        raise InvalidRequest(f"delivery {delivery_id} is pending: it is tried again by itself")


def replay_dead(connection: Connection, endpoint_id: int) -> int:
    """Do the same with all dead deliveries of an endpoint; how many."""
    return _replay(connection, "endpoint_id = :id AND state = 'dead'", {"id": endpoint_id})


def _replay(connection: Connection, condition: str, values: dict[str, Any]) -> int:
    return connection.execute(
        text(f"""
            UPDATE deliveries SET state = 'pending', attempt = 0, token = NULL, due_at = now(), finished_at = NULL
            WHERE id IN (SELECT id FROM deliveries WHERE {condition} ORDER BY id FOR NO KEY UPDATE)
        """),
        values,
    ).rowcount


def list_newest(
    connection: Connection,
    *,
    states: Sequence[DeliveryState] = (),
    job_id: UUID | None = None,
    limit: int = 50,
) -> list[Delivery]:
    """The newest deliveries first; those in some states or of one job only, where named."""
    rows = connection.execute(
        text(f"""
            SELECT {_COLUMNS} FROM deliveries
            WHERE (cardinality(CAST(:states AS text[])) = 0 OR state = ANY(:states))
              AND (CAST(:job_id AS uuid) IS NULL OR job_id = :job_id)
            ORDER BY id DESC LIMIT :limit
        """),
        {"states": [str(state) for state in states], "job_id": job_id, "limit": limit},
    )
    return [Delivery.model_validate(dict(row._mapping)) for row in rows]


def get(connection: Connection, delivery_id: UUID) -> DeliveryDetail:
    """A delivery with its body.

    Raises:
        DeliveryNotFound: There is none of that id.
    """
    row = connection.execute(
        text(f"SELECT {_COLUMNS}, body FROM deliveries WHERE id = :id"), {"id": delivery_id}
    ).first()
    if row is None:
        raise _not_found(delivery_id)
    return DeliveryDetail.model_validate(dict(row._mapping))


def _not_found(delivery_id: UUID) -> DeliveryNotFound:
    return DeliveryNotFound(f"no delivery {delivery_id}; `batchmill webhooks list` shows those that exist")
