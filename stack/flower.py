"""Flower as a program of the embedded stack: where it listens, and what it asks for."""

import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from contracts.errors import ConfigurationError
from contracts.settings import Settings
from stack.layout import Layout
from stack.processes import Program

log = logging.getLogger(__name__)

NAME = "flower"
USER = "batchmill"
PORT = 5555
"""Where people look for Flower."""
NOT_INSTALLED = "Flower is not installed: pip install 'batchmill[flower]'"
_LOOPBACK = "127.0.0.1"
_BACKLOG = 128


def program_of(settings: Settings, layout: Layout, environment: Mapping[str, str]) -> Program | None:
    """Flower, listening on the loopback from now on; None where it is turned off or cannot be, which the log says.

    This process holds the socket, and Flower inherits it with every start: nobody else can take the port while Flower
    is started again and be told its password.
    """
    if settings.flower_port == 0:
        return None
    if find_spec("flower") is None:
        log.warning("%s", NOT_INSTALLED)
        return None
    try:
        asked = password(settings)
        listening = _listen(settings.flower_port, layout)
    except (OSError, ConfigurationError) as error:
        log.warning("Flower is not served: %s", error)
        return None
    port = listening.getsockname()[1]
    with suppress(OSError):
        layout.flower_port.write_text(f"{port}\n")
    descriptor = listening.detach()  # open as long as this process lives
    return Program(
        name=NAME,
        command=(sys.executable, "-m", "stack.flower_server", str(descriptor)),
        environment={**environment, "BATCHMILL_FLOWER_PASSWORD": asked},  # not an argument, which everybody may see
        folder=layout.home,
        sockets=(descriptor,),
        address=f"http://{_LOOPBACK}:{port}",
    )


def why_not(settings: Settings) -> str:
    """Why a stack that runs serves no Flower, though it is not turned off."""
    if find_spec("flower") is None:
        return NOT_INSTALLED
    return f"Flower is not served: {Layout.of(settings.home).supervisor_log} says why"


def password(settings: Settings) -> str:
    """What Flower asks for: the setting, or for the embedded stack what its home holds, where it is made.

    Raises:
        ConfigurationError: There is none, or one that a browser could not send; the message does not quote it.
        OSError: The file cannot be made or read.
    """
    if settings.flower_password is not None:
        found = settings.flower_password.get_secret_value()
    elif settings.embedded:
        found = _kept(Layout.of(settings.home).flower_password)
    else:
        raise ConfigurationError("BATCHMILL_FLOWER_PASSWORD is not set, and Flower is served to nobody without one")
    if not found or not (found.isascii() and found.isprintable()):
        raise ConfigurationError("BATCHMILL_FLOWER_PASSWORD: use printable ASCII characters, at least one")
    return found


def _kept(file: Path) -> str:
    """The password in a file that its owner alone may read; any number of callers make one."""
    if not file.exists():
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # 0600
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(f"{secrets.token_urlsafe(24)}\n")
            with suppress(FileExistsError):  # somebody was faster: theirs counts
                os.link(temporary, file)
        finally:
            os.unlink(temporary)
    return file.read_text().strip()


def _listen(wanted: int | None, layout: Layout) -> socket.socket:
    """A socket on the wanted port; without one on the usual, the last or any that is free.

    Raises:
        OSError: The wanted port is taken.
    """
    if wanted is not None:
        return _bound(wanted)
    for port in (PORT, _last(layout)):
        with suppress(OSError):
            return _bound(port)
    return _bound(0)


def _last(layout: Layout) -> int:
    """The port of the last time, so that a bookmark stays good; 0 when there is none."""
    try:
        port = int(layout.flower_port.read_text())
    except (OSError, ValueError):
        return 0
    return port if 0 < port < 2**16 else 0


def _bound(port: int) -> socket.socket:
    try:
        return socket.create_server((_LOOPBACK, port), backlog=_BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f"port {port} of {_LOOPBACK}: {error.strerror}") from None
