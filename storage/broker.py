"""Tickets and ticks on the broker: messages that name no work and carry no payload."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from celery import Celery
from kombu import Queue
from kombu.exceptions import KombuError

from contracts.errors import BrokerUnavailable, ConfigurationError
from contracts.names import queue_of
from contracts.tls import BROKER_SCHEMES as TLS_SCHEMES
from contracts.tls import SYSTEM

TICKET = "batchmill.ticket"
TICK = "batchmill.tick"
TICK_QUEUE = Queue("batchmill.ticks", routing_key="batchmill.ticks")
_RETRIES = {"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5}
_SCHEMES = ("redis", "rediss", "redis+socket", "amqp", "amqps", "pyamqp")
_REDIS_OPTIONS = {
    "socket_timeout": 15,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 10,
}
_AMQP_OPTIONS = {"confirm_publish": True, "read_timeout": 15, "write_timeout": 15}


def queue(pool: str) -> Queue:
    """The queue of a pool's tickets, as both ends declare it."""
    return Queue(queue_of(pool), routing_key=queue_of(pool))


def celery_app(broker_url: str) -> Celery:
    """The Celery application as producers and workers configure it alike.

    Raises:
        ConfigurationError: No transport of ours is meant by the URL, or a part of it is not understood.
    """
    scheme = broker_url.partition(":")[0]
    if scheme not in _SCHEMES:
        raise ConfigurationError(f"BATCHMILL_BROKER_URL: {scheme!r} is not a broker; use one of {', '.join(_SCHEMES)}")
    redis = "amqp" not in scheme
    if redis:
        _check_database(broker_url)
    address, tls = _tls(broker_url)
    app = Celery("batchmill", broker=address, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,  # the ticket was read: what protects the work is the lease
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=3,
        broker_use_ssl=tls,
        # A broker that freezes is noticed by the socket, not by luck.
        broker_transport_options=_REDIS_OPTIONS if redis else _AMQP_OPTIONS,
    )
    try:
        app.connection_for_write()  # nothing is connected yet
    except ValueError as error:
        raise ConfigurationError(f"BATCHMILL_BROKER_URL: {error}") from None
    return app


def _check_database(url: str) -> None:
    """Make sure that what names a database of a Redis is a number, which kombu asks for when it first connects."""
    parts = urlsplit(url)
    inside = parts.path.strip("/") if parts.scheme != "redis+socket" else ""
    for database in (inside, dict(parse_qsl(parts.query)).get("virtual_host", "")):
        if database and not (database.isascii() and database.isdigit()):
            raise ConfigurationError(f"BATCHMILL_BROKER_URL: {database!r} is no database of a Redis: give its number")


def _tls(url: str) -> tuple[str, dict[str, Any] | None]:
    """The address without what it says of TLS, and that as the transport wants it; the server is always verified."""
    parts = urlsplit(url)
    if parts.scheme not in TLS_SCHEMES:
        return url, None
    query = dict(parse_qsl(parts.query))
    files = {name: query.pop(f"ssl_{name}", None) for name in ("ca_certs", "certfile", "keyfile")}
    if query.pop("ssl_cert_reqs", "required").lower() not in ("required", "cert_required") or any(
        name.startswith("ssl_") for name in query
    ):
        raise ConfigurationError(
            "BATCHMILL_BROKER_URL: the broker is always verified: name whom to trust with BATCHMILL_BROKER_CA, and "
            "leave other ssl_… options out"
        )
    named = {name: path for name, path in files.items() if path not in (None, SYSTEM)}
    address = url.partition("?")[0] + (f"?{urlencode(query)}" if query else "")
    if parts.scheme == "rediss":
        return address, {"ssl_cert_reqs": ssl.CERT_REQUIRED, **{f"ssl_{name}": path for name, path in named.items()}}
    # Without a name, none would be asked for.
    return address, {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": parts.hostname or "localhost", **named}


class Tickets:
    """The publishing end of the broker.

    >>> with Tickets("redis://localhost") as tickets:  # doctest: +SKIP
    ...     tickets.publish("default", 3)
    """

    def __init__(self, broker_url: str, app: Celery | None = None) -> None:
        self._app = app or celery_app(broker_url)
        transport = self._app.connection_for_write()
        self._errors = (KombuError, OSError, *transport.connection_errors, *transport.channel_errors)

    def publish(self, pool: str, count: int) -> None:
        """Wake workers of a pool, each to claim one shard.

        Raises:
            BrokerUnavailable: The broker does not answer; some tickets may have gone out.
        """
        with self._typed_errors(), self._app.producer_pool.acquire(block=True) as producer:
            for _ in range(count):
                self._app.send_task(
                    TICKET, args=(pool,), queue=queue(pool), producer=producer, retry=True, retry_policy=_RETRIES
                )

    def depth(self, pool: str) -> int:
        """Tickets that wait in the broker, those that workers have fetched not counted.

        Raises:
            BrokerUnavailable: The broker does not answer.
        """
        with self._typed_errors(), self._app.connection_for_write() as connection:
            connection.ensure_connection(**_RETRIES)
            with connection.channel() as channel:
                return int(queue(pool)(channel).queue_declare().message_count)

    def top_up(self, pool: str, claimable: int, window: int) -> int:
        """Publish what is missing for `claimable` shards, at most `window` waiting at once; how many that was.

        Raises:
            BrokerUnavailable: The broker does not answer.
        """
        missing = max(min(claimable, window) - self.depth(pool), 0)
        if missing:
            self.publish(pool, missing)
        return missing

    def close(self) -> None:
        """Give the connections back."""
        self._app.close()

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            address = self._app.connection_for_write().as_uri()
            raise BrokerUnavailable(f"the broker at {address} does not answer: {reason}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
