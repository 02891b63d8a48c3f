"""A wire that can be cut: a proxy between some of the workers and a server."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
"""Postgres' simple query that commits, as psycopg sends it."""

Address = str | tuple[str, int]
"""A Unix socket's path, or a host and a port."""


class Proxy:
    """Forwards bytes; runs on a thread of its own.

    Args:
        listen: Where clients connect.
        target: Where the server listens.
    """

    def __init__(self, listen: Address, target: Address) -> None:
        self._listen, self._target = listen, target
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._stopping = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._commits_to_lose = 0
        self.lost_commits = 0
        """Transactions that were committed without their client hearing of it."""
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="proxy", daemon=True)
        self._thread.start()
        started.wait()

    def hole(self) -> None:
        """Half-open: what is connected stays so, and not a byte arrives any more, in either direction."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def heal(self) -> None:
        """Reset what was half-open, and forward again."""

        def healed() -> None:
            self._reset()
            self._open.set()

        self._loop.call_soon_threadsafe(healed)

    def reset(self) -> None:
        """Cut every connection."""
        self._loop.call_soon_threadsafe(self._reset)

    def lose_commit(self) -> None:
        """Pass the next COMMIT on, and cut the connection when the server has answered it."""
        self._commits_to_lose += 1

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self, started: threading.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        if isinstance(self._listen, str):
            server = await asyncio.start_unix_server(self._accept, self._listen)
        else:
            server = await asyncio.start_server(self._accept, *self._listen)
        started.set()
        await self._stopping.wait()
        server.close()
        self._reset()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._writers.add(to_client)
        try:
            from_server, to_server = await self._connect()
        except OSError:
            self._drop(to_client)
            return
        self._writers.add(to_server)
        lost = asyncio.Event()

        async def up(data: bytes) -> bool:
            if self._commits_to_lose and COMMIT in data:
                self._commits_to_lose -= 1
                lost.set()
            to_server.write(data)
            await to_server.drain()
            return True

        async def down(data: bytes) -> bool:
            if lost.is_set():  # this is the answer to the COMMIT
                self.lost_commits += 1
                return False
            to_client.write(data)
            await to_client.drain()
            return True

        try:
            pumps = [asyncio.create_task(self._pump(*ends)) for ends in ((from_client, up), (from_server, down))]
            _, pending = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pending:
                pump.cancel()
        finally:
            self._drop(to_client)
            self._drop(to_server)

    async def _pump(self, source: asyncio.StreamReader, forward: Callable[[bytes], Awaitable[bool]]) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                await self._open.wait()
                if not await forward(data):
                    return

    def _reset(self) -> None:
        for writer in list(self._writers):
            self._drop(writer)

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.transport.abort()


def before_postgres(url: str, folder: Path) -> tuple[Proxy, str]:
    """A proxy before a Postgres on a Unix socket, and the address that leads through it."""
    head, _, rest = url.partition("host=")
    sockets, _, tail = rest.partition("&")
    folder.mkdir(mode=0o700)
    name = ".s.PGSQL.5432"
    return Proxy(str(folder / name), f"{sockets}/{name}"), f"{head}host={folder}&{tail}"


def before_broker(url: str, folder: Path) -> tuple[Proxy, str]:
    """A proxy before the broker, and the address that leads through it."""
    if url.startswith("redis+socket://"):
        path = str(folder / "valkey.sock")
        return Proxy(path, url.removeprefix("redis+socket://")), f"redis+socket://{path}"
    port = int(url.rpartition(":")[2].strip("/"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    return Proxy(("127.0.0.1", free), ("127.0.0.1", port)), url.replace(f":{port}/", f":{free}/")
