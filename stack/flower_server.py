"""Flower behind a password, on every page: `python -m stack.flower_server DESCRIPTOR`, or `batchmill flower`.

Flower by itself asks for a password on most pages and not on `/metrics`, nor on those that are not found. Here nothing
but `/healthcheck` is answered without it, by a check that comes before Flower's own.
"""

import base64
import binascii
import hmac
import signal
import socket
import sys
from types import FrameType
from typing import Any

from flower.app import Flower
from flower.command import apply_env_options, extract_settings, setup_logging
from flower.options import default_options
from flower.urls import settings as flower_settings
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.netutil import bind_sockets
from tornado.web import RequestHandler

from contracts import logs
from contracts.entrypoint import enter
from contracts.errors import ConfigurationError
from contracts.settings import Settings
from stack.flower import USER, password
from storage.broker import TICK_QUEUE, celery_app, queue

HEALTH = "/healthcheck"
"""Says `OK` to anyone: what a container's health check asks for."""
_OPTIONS = {
    "read_only": True,  # what a ticket or a worker is to do, commands of ours say
    "enable_events": False,  # workers send theirs unasked
    "persistent": False,
    "max_tasks": 10_000,
    "max_workers": 1_000,
    "purge_offline_workers": 600,  # each worker process has a name of its own
    "tasks_columns": "name,state,args,result,received,runtime,worker",
}
"""What Flower does unless a variable `FLOWER_…` says otherwise; about 2 kB a task are kept."""


class Refusal(RequestHandler):
    """The answer to whoever does not know the password."""

    def prepare(self) -> None:
        """Ask for it."""
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="batchmill", charset="UTF-8"')
        self.finish("a password is needed: `batchmill up` shows it\n")

    def check_xsrf_cookie(self) -> None:
        """Nothing is done here that a forged request could ask for."""


class GuardedFlower(Flower):  # type: ignore[misc]
    """Flower that answers nothing, whatever the path, without the password."""

    def __init__(self, credentials: str, **how: Any) -> None:
        super().__init__(**how)
        self._credentials = credentials.encode()

    def find_handler(self, request: HTTPServerRequest, **how: Any) -> Any:
        """Who answers a request."""
        if request.path == HEALTH or self._knows(request.headers.get("Authorization", "")):
            return super().find_handler(request, **how)
        return self.get_handler_delegate(request, Refusal)

    def _knows(self, header: str) -> bool:
        scheme, _, encoded = header.partition(" ")
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (ValueError, binascii.Error):
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(given, self._credentials)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets at every address of a host.

    Raises:
        ConfigurationError: They cannot be had.
    """
    try:
        return bind_sockets(port, host)
    except OSError as error:
        raise ConfigurationError(f"Flower cannot listen on {host}, port {port}: {error.strerror}") from None


def serve(settings: Settings, sockets: list[socket.socket]) -> None:
    """Show what workers do until SIGTERM or SIGINT.

    Args:
        settings: Name the broker and the password.
        sockets: Where to answer; they listen already.

    Raises:
        ConfigurationError: There is no password, or the broker's address is none.
    """
    logs.configure(settings)
    credentials = f"{USER}:{password(settings)}"
    app = celery_app(str(settings.broker_url))
    # What the page of queues shows before it hears of more.
    app.conf.update(task_queues=[queue(settings.pool), TICK_QUEUE], task_default_queue=TICK_QUEUE.name)
    for name, value in _OPTIONS.items():
        setattr(default_options, name, value)
    apply_env_options()
    default_options.basic_auth = [credentials]  # without it Flower's own API stays shut
    extract_settings()
    setup_logging()
    flower = GuardedFlower(credentials, capp=app, options=default_options, **flower_settings)
    server = HTTPServer(flower, xheaders=default_options.xheaders)
    server.add_sockets(sockets)

    def leave(_number: int, _frame: FrameType | None) -> None:
        flower.io_loop.add_callback_from_signal(flower.stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    flower.start()


def main() -> int:
    """Serve on a socket that was inherited."""
    inherited = socket.socket(fileno=int(sys.argv[1]))
    inherited.setblocking(False)
    return enter("stack.flower", lambda settings: serve(settings, [inherited]))


if __name__ == "__main__":
    sys.exit(main())
