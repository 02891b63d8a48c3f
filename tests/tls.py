"""Servers that speak TLS, and who vouches for them."""

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme

SSL_REQUEST = struct.pack("!ii", 8, 80_877_103)
"""Source: PostgreSQL's documentation, "Message Formats"."""


class Authority:
    """A certificate authority of the test's own, in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.ca = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def context(self, *names: str, client: bool = False) -> ssl.SSLContext:
        """What a server of those names presents itself with; it may ask clients for a certificate as well."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*names).configure_cert(context)
        if client:
            self._ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def write(self, *names: str) -> tuple[Path, Path]:
        """A certificate and its key as files."""
        issued = self._ca.issue_cert(*names)
        certificate, key = (self._folder / f"{names[0]}.{part}" for part in ("crt", "key"))
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        key.chmod(0o600)
        return certificate, key


@contextmanager
def terminating(context: ssl.SSLContext, target: str | tuple[str, int], *, postgres: bool = False) -> Iterator[int]:
    """The port of a proxy that speaks TLS, and hands on in clear to a unix socket or to a host and port.

    To Postgres, a client first sends a request for TLS.
    """
    threads: list[threading.Thread] = []
    open_sockets: set[socket.socket] = set()

    def relay(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(plain: socket.socket) -> None:
        open_sockets.add(plain)
        with suppress(OSError), plain:  # a client that does not trust us hangs up
            if postgres:
                assert plain.recv(8, socket.MSG_WAITALL) == SSL_REQUEST
                plain.sendall(b"S")
            with context.wrap_socket(plain, server_side=True) as client:
                open_sockets.add(client)
                family = socket.AF_UNIX if isinstance(target, str) else socket.AF_INET
                with socket.socket(family) as server:
                    open_sockets.add(server)
                    server.connect(target)
                    back = threading.Thread(target=relay, args=(server, client), daemon=True)
                    back.start()
                    relay(client, server)
                    back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                plain, _ = listener.accept()
                thread = threading.Thread(target=serve, args=(plain,), daemon=True)
                threads.append(thread)
                thread.start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for held in open_sockets:
                with suppress(OSError):
                    held.shutdown(socket.SHUT_RDWR)
            accepting.join(5)
            for thread in threads:
                thread.join(5)
