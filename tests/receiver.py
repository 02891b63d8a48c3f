"""A receiver of webhooks on loopback that behaves as badly as it is told to, and the events to send there."""

import asyncio
import socket
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from ipaddress import ip_network
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from contracts.callbacks import Network
from storage import endpoints
from storage.database import Database
from storage.secrets import Keyring, new_secret
from tests.jobs import query
from worker.webhooks.deliverer import Deliverer
from worker.webhooks.guard import GuardedTransport
from worker.webhooks.sender import Sender

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"),)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
HANG, RESET = b"hang", b"reset"
CUT = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this"
TRICKLE = b"trickle"


def status(code: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {code} Whatever", "content-length: 0", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


class Received(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> UUID:
        return UUID(self.headers["webhook-id"])


class Receiver:
    """Answers the requests to each path with the given answers in turn, the last one for ever; 200 by default."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self.requests: list[Received] = []
        self.server_names: list[str | None] = []
        self._answers: dict[str, list[bytes]] = defaultdict(lambda: [OK])
        self._loop = asyncio.new_event_loop()
        self._tls = tls
        if tls is not None:
            tls.sni_callback = lambda _, name, __: self.server_names.append(name)
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[started])
        self._thread.start()
        started.wait(10)

    def behave(self, path: str, *answers: bytes) -> None:
        self._answers[path] = list(answers)

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    def to(self, path: str) -> list[Received]:
        return [request for request in self.requests if request.path == path]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        async def serve() -> None:
            self._stop = asyncio.Event()
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await self._stop.wait()
            server.close()
            mine = asyncio.current_task()
            others = [task for task in asyncio.all_tasks() if task is not mine]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(serve())

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._answer(reader, writer):
                    pass
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        path = head[0].split(" ")[1]
        answers = self._answers[path]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.requests.append(Received(path, headers, body))
        if answer == HANG:
            await reader.read()
            return False
        if answer == RESET:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        if answer == TRICKLE:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
            while not writer.is_closing():
                writer.write(b".")
                await writer.drain()
                await asyncio.sleep(0.05)
            return False
        writer.write(answer)
        await writer.drain()
        return answer is not CUT


def add_endpoint(database: Database, url: str) -> tuple[int, str]:
    """The number and the secret of a new endpoint."""
    secret = new_secret()
    with database.transaction() as connection:
        return endpoints.add(connection, url, Keyring([KEY]).encrypt(secret)).id, secret


def add_events(
    database: Database, endpoint_id: int, url: str, count: int = 1, body: Mapping[str, Any] | None = None
) -> list[UUID]:
    rows = query(
        database,
        "INSERT INTO deliveries (endpoint_id, url, event, body) "
        "SELECT :endpoint_id, :url, 'job.completed', CAST(:body AS jsonb) FROM generate_series(1, :count) RETURNING id",
        endpoint_id=endpoint_id,
        url=url,
        count=count,
        body=orjson.dumps(body or {"type": "job.completed"}).decode(),
    )
    return [row.id for row in rows]


@contextmanager
def delivering(
    database: Database,
    *,
    waits: tuple[float, ...] = (0.05,) * 9,
    seconds: float = 5.0,
    hold: timedelta | None = None,
    allow: tuple[Network, ...] = LOOPBACK,
    **transport: Any,
) -> Iterator[Callable[[], None]]:
    """A deliverer on a thread of this process; what it gives tells it to stop."""
    loop = asyncio.new_event_loop()
    made: list[Deliverer] = []

    async def run() -> None:
        sender = Sender(GuardedTransport(allow, seconds=seconds, **transport), Keyring([KEY]), seconds)
        made.append(Deliverer(database, sender.send, waits, hold or timedelta(seconds=2 * seconds + 5)))
        try:
            await made[0].run()
        finally:
            await sender.close()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())

    def stop() -> None:
        with suppress(RuntimeError):  # it ended
            loop.call_soon_threadsafe(made[0].stop)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield stop
    finally:
        stop()
        thread.join(30)
        assert not thread.is_alive()
