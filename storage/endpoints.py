"""Webhook endpoints: receivers that were registered, each with a secret of its own, encrypted."""

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, text

from contracts import callbacks
from contracts.errors import InvalidRequest, RefusedUrl, UnknownEndpoint
from contracts.webhooks import Endpoint, EndpointSummary
from storage import deliveries
from storage.secrets import Keyring

_COLUMNS = "id, url, created_at, CASE WHEN previous_until > now() THEN previous_until END AS previous_until, \
disabled_at, disabled_reason"


def _endpoint(row: Row[Any]) -> Endpoint:
    return Endpoint.model_validate(dict(row._mapping))


def add(connection: Connection, url: str, secret: bytes) -> Endpoint:
    """Register a receiver.

    Args:
        connection: A transaction.
        url: In its normal form.
        secret: Encrypted.

    Raises:
        InvalidRequest: It is registered already.
    """
    row = connection.execute(
        text(
            "INSERT INTO webhook_endpoints (url, secret) VALUES (:url, :secret) ON CONFLICT DO NOTHING "
            f"RETURNING {_COLUMNS}"
        ),
        {"url": url, "secret": secret},
    ).first()
    if row is None:
        raise InvalidRequest(
            f"{_shown(url)} is registered already: `batchmill webhooks rotate` gives it a new secret, "
            "`batchmill webhooks enable` takes it up again"
        )
    return _endpoint(row)


def find(connection: Connection, callback_url: str) -> Endpoint:
    """The endpoint that a job may name by this URL: its own, or its own with another query string.

    Raises:
        RefusedUrl: It is no URL that webhooks are sent to.
        UnknownEndpoint: None is registered for it, or it is disabled.
    """
    callback = callbacks.parse(callback_url)
    row = _match(connection, callback, _COLUMNS)
    if row is None:
        raise UnknownEndpoint(
            f"no webhook endpoint is registered for {callback.base}: run `batchmill webhooks add {callback.base}`"
        )
    endpoint = _endpoint(row)
    if endpoint.disabled_at is not None:
        raise UnknownEndpoint(
            f"webhook endpoint {endpoint.id} ({callback.base}) is disabled ({endpoint.disabled_reason}): "
            f"run `batchmill webhooks enable {endpoint.id}`"
        )
    return endpoint


def registered(connection: Connection, callback_url: str) -> int | None:
    """The number of the endpoint that `find` finds, disabled or not: what is sent to a disabled one is dead, visibly.

    Raises:
        RefusedUrl: It is no URL that webhooks are sent to.
    """
    row = _match(connection, callbacks.parse(callback_url), "id")  # workers ask as well, and may read little else
    return None if row is None else int(row.id)


def _match(connection: Connection, callback: callbacks.Callback, columns: str) -> Row[Any] | None:
    return connection.execute(
        # The one with the very query comes first.
        text(f"SELECT {columns} FROM webhook_endpoints WHERE url IN (:url, :base) ORDER BY url = :url DESC LIMIT 1"),
        {"url": callback.url, "base": callback.base},
    ).first()


def get(connection: Connection, reference: str | int) -> Endpoint:
    """The endpoint of that number or URL, disabled or not.

    Raises:
        UnknownEndpoint: There is none.
    """
    condition, values = _named(reference)
    row = connection.execute(text(f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE {condition}"), values).first()
    if row is None:
        raise UnknownEndpoint(
            f"no webhook endpoint {_shown(str(reference))}; `batchmill webhooks list` shows those that exist"
        )
    return _endpoint(row)


def list_all(connection: Connection) -> list[EndpointSummary]:
    """Every endpoint, with what became of its deliveries."""
    rows = connection.execute(
        text(f"""
            SELECT {_COLUMNS}, coalesce(pending, 0) AS pending, coalesce(delivered, 0) AS delivered,
                   coalesce(dead, 0) AS dead
            FROM webhook_endpoints LEFT JOIN (
                SELECT endpoint_id, count(*) FILTER (WHERE state = 'pending') AS pending,
                       count(*) FILTER (WHERE state = 'delivered') AS delivered,
                       count(*) FILTER (WHERE state = 'dead') AS dead
                FROM deliveries GROUP BY endpoint_id
            ) AS counted ON counted.endpoint_id = id
            ORDER BY id
        """)
    )
    return [EndpointSummary.model_validate(dict(row._mapping)) for row in rows]


def disable(connection: Connection, endpoint_id: int, reason: str) -> bool:
    """Send nothing there any more: what is pending is dead; whether it was enabled before."""
    disabled = connection.execute(
        text("""
            UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = :reason
            WHERE id = :id AND disabled_at IS NULL RETURNING id
        """),
        {"id": endpoint_id, "reason": reason},
    ).first()
    deliveries.bury_disabled(connection)
    return disabled is not None


def enable(connection: Connection, endpoint_id: int) -> None:
    """Take an endpoint up again; what died meanwhile stays dead until it is replayed."""
    connection.execute(
        text("""
            UPDATE webhook_endpoints SET disabled_at = NULL, disabled_reason = NULL
            WHERE id = :id AND disabled_at IS NOT NULL
        """),
        {"id": endpoint_id},
    )


def rotate(connection: Connection, endpoint_id: int, secret: bytes, overlap: timedelta) -> Endpoint:
    """Give an endpoint a new secret, encrypted; the one before signs as well for a while.

    Raises:
        UnknownEndpoint: There is no such endpoint.
    """
    connection.execute(
        text("""
            UPDATE webhook_endpoints
            SET previous_secret = secret, previous_until = now() + :overlap, secret = :secret
            WHERE id = :id
        """),
        {"id": endpoint_id, "secret": secret, "overlap": overlap},
    )
    return get(connection, endpoint_id)


def reencrypt(connection: Connection, keyring: Keyring) -> int:
    """Put every secret under the keyring's first key; how many endpoints there are.

    Raises:
        ConfigurationError: One was encrypted with a key that the keyring does not hold.
    """
    rows = connection.execute(
        text("SELECT id, secret, previous_secret FROM webhook_endpoints ORDER BY id FOR NO KEY UPDATE")
    ).all()
    for row in rows:
        connection.execute(
            text("UPDATE webhook_endpoints SET secret = :secret, previous_secret = :previous WHERE id = :id"),
            {
                "id": row.id,
                "secret": keyring.reencrypt(row.secret),
                "previous": row.previous_secret and keyring.reencrypt(row.previous_secret),
            },
        )
    return len(rows)


def _named(reference: str | int) -> tuple[str, dict[str, Any]]:
    text_form = str(reference)
    if text_form.isascii() and text_form.isdigit():
        return "id = :id", {"id": min(int(text_form), 2**63 - 1)}
    return "url = :url", {"url": callbacks.parse(text_form).url}


def _shown(url: str) -> str:
    """A URL for messages: its query may hold what is nobody's business."""
    try:
        return callbacks.parse(url).base
    except RefusedUrl:
        return repr(url)
