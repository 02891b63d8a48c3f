"""What a worker takes from its queues: tickets and ticks as `storage.broker` writes them, and nothing else.

Whoever can write to the broker can put anything into it. Celery would log what it cannot read, body and all, run what
a message chains to itself, and end the process over some messages; on RabbitMQ the next process would be handed the
same one. Here whatever is no ticket is thrown away, unread, and counted.
"""

import logging
import time
from collections.abc import Callable, Container
from datetime import datetime, timedelta
from typing import Any

from amqp.method_framing import frame_handler
from celery.worker.consumer import Consumer
from kombu import Connection, compression
from kombu.transport.redis import Channel, Transport
from redis.exceptions import DataError

from contracts.names import queue_of
from storage.broker import TICK, TICKET

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0
"""However much is thrown away, the log says so once in so long."""
MAX_BODY_BYTES = 1024


class Discarded:
    """Counts what was thrown away, and says so now and then."""

    def __init__(self) -> None:
        self._count = 0
        self._quiet_until = 0.0

    def note(self, reason: str) -> None:
        """One more message; the reason is ours, and quotes nothing of it."""
        self._count += 1
        now = time.monotonic()
        if now >= self._quiet_until:
            log.warning("%d messages were thrown away that are no tickets; the last: %s", self._count, reason)
            self._count, self._quiet_until = 0, now + SECONDS_BETWEEN_LINES


class NotATicket(Exception):
    """The reason is ours, and quotes nothing of the message."""


class TicketConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer, deaf to what is no ticket; the setting `worker_consumer` names it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._discarded = Discarded()
        # Or kombu would inflate what is compressed before anyone can look at it.
        for kind in compression.encoders():
            compression.register(_refuse_compressed, _refuse_compressed, kind)

    def connection_for_read(self, heartbeat: float | None = None) -> Connection:
        """The connection that tickets are read from."""
        connection: Connection = self.app.connection_for_read(heartbeat=heartbeat)
        if issubclass(connection.get_transport_cls(), Transport):
            transport = guarded_transport(self._discarded)
            # Not `transport_cls`, which messages show as the scheme of the address.
            connection.get_transport_cls = lambda: transport
        else:
            connection.transport_options = {**connection.transport_options, "frame_handler": guarded_frames}
        return self.ensure_connected(connection)

    def create_task_handler(self, **how: Any) -> Any:
        """What is called with each message."""
        handle = super().create_task_handler(**how)

        def on_message(message: Any) -> None:
            try:
                headers = headers_of_ticket(message, self.app.amqp.queues)
            except Exception as error:  # of whatever kind, the message brought it along
                self.on_decode_error(message, error)
            else:
                message.headers = headers
                handle(message)

        return on_message

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Throw a message away."""
        self._discarded.note(str(exc) if isinstance(exc, NotATicket) else type(exc).__name__)
        message.reject_log_error(log, self.connection_errors)


def headers_of_ticket(message: Any, queues: Container[str]) -> dict[str, Any]:
    """The headers that Celery is to see of a ticket: its task, id and expiry, and nothing that asks for more.

    Args:
        message: Any that kombu could unpack.
        queues: Names of those that the worker serves.

    Raises:
        NotATicket: It is none. What is wrong enough raises any other exception.
    """
    headers = message.headers
    if headers.get("task") not in (TICKET, TICK):
        raise NotATicket("another task, or none")
    if message.content_type != "application/json" or len(message.body) > MAX_BODY_BYTES:
        raise NotATicket("not JSON, or too long")
    arguments, named, embedded = message.payload
    if named or any(embedded.values()) or len(arguments) != (headers["task"] == TICKET):
        raise NotATicket("wrong arguments")
    if any(queue_of(pool) not in queues for pool in arguments):
        raise NotATicket("for another pool")
    expires = headers.get("expires")
    if expires is not None and datetime.fromisoformat(expires).utcoffset() != timedelta():
        raise NotATicket("an expiry that is none")
    if headers.get("eta") is not None or type(headers["id"]) is not str:
        raise NotATicket("wrong headers")
    # What events show of it is ours, whatever the message says of itself.
    shown = {"argsrepr": repr(tuple(arguments)), "kwargsrepr": "{}"}
    return {"lang": "py", "task": headers["task"], "id": headers["id"], "expires": expires, **shown}


_NO_MESSAGE = (AttributeError, LookupError, RecursionError, TypeError, ValueError, DataError)


def guarded_transport(discarded: Discarded) -> type[Transport]:
    """Kombu's transport for Redis, on channels that survive what is no message at all."""

    class GuardedChannel(Channel):  # type: ignore[misc]
        def _brpop_read(self, **options: Any) -> Any:
            try:
                return super()._brpop_read(**options)
            except _NO_MESSAGE as error:
                # It was taken out of the queue already: nothing is left to reject.
                discarded.note(type(error).__name__)

    class GuardedTransport(Transport):  # type: ignore[misc]
        Channel = GuardedChannel

    return GuardedTransport


def guarded_frames(connection: Any, callback: Callable[..., None]) -> Callable[[tuple[int, int, bytes]], bool]:
    """py-amqp's reader of frames: a message with properties that cannot be read arrives without any."""
    on_frame = frame_handler(connection, callback)

    def on_guarded_frame(frame: tuple[int, int, bytes]) -> bool:
        try:
            return bool(on_frame(frame))
        except (ValueError, OverflowError, RecursionError):
            kind, channel, data = frame
            if kind != _HEADER_FRAME:
                raise
            return bool(on_frame((kind, channel, bytes(data[:_SIZE_ENDS]) + _NO_PROPERTIES)))

    return on_guarded_frame


# AMQP 0-9-1, 2.3.5.2: class, weight and size of the body, then a bit for each property that follows.
_HEADER_FRAME = 2
_SIZE_ENDS = 12
_NO_PROPERTIES = b"\0\0"


def _refuse_compressed(_: bytes) -> bytes:
    raise NotATicket("compressed")
