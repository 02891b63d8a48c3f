"""The one small HTTP server of a process: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever runs it."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from contracts.errors import ConfigurationError
from contracts.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What a probe is told."""

    good: bool
    details: Mapping[str, object]
    """For people: why."""


class Health(Protocol):
    """Answers the probes of one process, on threads of the server's."""

    def alive(self) -> Verdict:
        """Whether it can go on; who is told that it cannot may end it."""

    def ready(self) -> Verdict:
        """Whether it does its work now."""


@contextmanager
def serving(settings: Settings, registry: CollectorRegistry, health: Health) -> Iterator[None]:
    """Answer while the block runs, where the settings name a port.

    Raises:
        ConfigurationError: The port is taken, or the host is none of this machine's.
    """
    if settings.metrics_port is None:
        yield
        return
    server = _listen(settings.metrics_host, settings.metrics_port, _application(registry, health))
    threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()
    host = f"[{settings.metrics_host}]" if ":" in settings.metrics_host else settings.metrics_host
    log.info("metrics and health at http://%s:%d/metrics", host, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _listen(host: str, port: int, application: WSGIApplication) -> WSGIServer:
    class Server(ThreadingWSGIServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    class Handler(WSGIRequestHandler):
        timeout = 10  # seconds: who connects and says nothing holds a thread for no longer

        def log_message(self, *_: object) -> None:
            """Nobody wants a line for each scrape."""

    try:
        return make_server(host, port, application, Server, Handler)
    except OSError as error:
        raise ConfigurationError(
            f"BATCHMILL_METRICS_PORT={port}: cannot listen on {host}: {error.strerror or error}; set another port, or "
            "0 for any free one; the address is BATCHMILL_METRICS_HOST"
        ) from None


def _application(registry: CollectorRegistry, health: Health) -> WSGIApplication:
    metrics = make_wsgi_app(registry)
    probes: dict[str, Callable[[], Verdict]] = {"/healthz": health.alive, "/readyz": health.ready}

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        if path not in probes:
            return _answer(start_response, HTTPStatus.NOT_FOUND, {"paths": ["/metrics", *probes]})
        if method != "GET":
            return _answer(start_response, HTTPStatus.METHOD_NOT_ALLOWED, {"methods": ["GET"]})
        verdict = probes[path]()
        status = HTTPStatus.OK if verdict.good else HTTPStatus.SERVICE_UNAVAILABLE
        return _answer(start_response, status, {"ok": verdict.good, **verdict.details})

    return application


def _answer(start_response: StartResponse, status: HTTPStatus, content: Mapping[str, object]) -> list[bytes]:
    body = json.dumps(content).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]
