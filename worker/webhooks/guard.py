"""Connections to addresses that were checked: a name is resolved once, every address is judged, and those are dialled.

The host name stays what `Host`, SNI and the certificate are about, for only the TCP connection is made differently. A
connection that is kept alive stays with the address that was checked.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import TypeAlias

import httpcore2
import httpx2

from contracts.callbacks import Network, refusal
from contracts.errors import RefusedUrl

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host; raises OSError when there is none."""

IDLE_CONNECTIONS = 64
IDLE_SECONDS = 5.0


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses that the system's resolver gives for a host, in its order."""
    with suppress(ValueError):
        return [str(ip_address(host))]
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Sequence[str]] = loop.create_future()

    def settle(addresses: Sequence[str], error: Exception | None) -> None:
        if not found.done():
            found.set_result(addresses) if error is None else found.set_exception(error)

    def look_up() -> None:
        addresses: list[str] = []
        failure: Exception | None = None
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
        except (OSError, UnicodeError) as error:
            failure = error
        with suppress(RuntimeError):  # nobody waits any more: the loop is closed
            loop.call_soon_threadsafe(settle, addresses, failure)

    # A thread of its own, that the end of the process does not wait for: resolvers may take half a minute to give up,
    # and those of one name must not stand in the way of another.
    threading.Thread(target=look_up, name="resolver", daemon=True).start()
    return await found


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Dials what a name resolves to, when each of its addresses may be connected to; and nothing else.

    Args:
        allow: Networks that are permitted though they are not public.
        public: Whether public addresses will do.
        seconds: How long connecting may take, with all addresses.
        resolve: The resolver.
        dial: What opens connections to addresses.
    """

    def __init__(
        self,
        allow: Sequence[Network],
        *,
        public: bool,
        seconds: float,
        resolve: Resolve = resolve,
        dial: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self._allow = allow
        self._public = public
        self._seconds = seconds
        self._resolve = resolve
        self._dial = dial or httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the host.

        Raises:
            RefusedUrl: One of its addresses may not be connected to; then none is.
            OSError: It has no address.
            httpcore2.ConnectError: None of them answers.
        """
        addresses = await self._resolve(host, port)
        for address in addresses:
            if reason := refusal(address, self._allow, public=self._public):
                raise RefusedUrl(f"refused, and not connected: {reason}")
        failure: Exception = OSError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._dial.connect_tcp(
                    address, port, self._seconds / len(addresses), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


class GuardedTransport(httpx2.AsyncBaseTransport):
    """HTTP/1.1 over guarded connections; plain http goes to allowed networks alone.

    Args:
        allow: Networks that are permitted though they are not public.
        seconds: How long connecting may take.
        verify: What certificates are checked against.
        resolve: The resolver.
        dial: What opens connections to addresses.
    """

    def __init__(
        self,
        allow: Sequence[Network] = (),
        *,
        seconds: float,
        verify: ssl.SSLContext | None = None,
        resolve: Resolve = resolve,
        dial: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        context = verify or httpx2.create_ssl_context()
        self._pools = {
            scheme: httpcore2.AsyncConnectionPool(
                ssl_context=context,
                max_connections=None,  # the deliverer has bounds of its own
                max_keepalive_connections=IDLE_CONNECTIONS,
                keepalive_expiry=IDLE_SECONDS,
                network_backend=GuardedBackend(
                    allow, public=scheme == "https", seconds=seconds, resolve=resolve, dial=dial
                ),
            )
            for scheme in ("https", "http")
        }

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; errors are httpcore2's."""
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        url = request.url
        response = await self._pools[url.scheme].handle_async_request(
            httpcore2.Request(
                method=request.method,
                url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx2.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Stream(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.aclose()


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._response.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()
