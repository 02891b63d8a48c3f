"""A private RabbitMQ: Debian's package, run on loopback by whoever runs the tests, and gone without a trace."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from stack.layout import Layout
from stack.processes import Child, Program

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The server itself; the one in the path would become another user first."""
START_SECONDS = 60.0
STOP_SECONDS = 15.0


def missing() -> str | None:
    """What is not installed here, where something is not."""
    if not SERVER.exists():
        return "RabbitMQ is not installed (apt-get install rabbitmq-server)"
    return None if shutil.which("epmd") else "Erlang's epmd is not installed (apt-get install erlang-base)"


class Node:
    """A node and the name server it needs, before they run; all that they write stands in the folder."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout.of(folder).prepare()
        self._amqp, distribution, self._names = _free_ports(3)
        self.url = f"amqp://guest:guest@127.0.0.1:{self._amqp}//"
        environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            # Erlang keeps its cookie at home.
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._names),
            "RABBITMQ_NODENAME": f"test-{uuid4().hex}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._amqp),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # Neither the settings nor the plugins of the host's own node.
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            # Signals reach Erlang itself, with no shell in between.
            "RABBITMQ_ALLOW_INPUT": "1",
        }
        (folder / "rabbitmq.conf").write_text("disk_free_limit.absolute = 1MB\n")
        (folder / "rabbitmq-env.conf").touch()
        (folder / "enabled_plugins").write_text("[].\n")
        cookie = folder / ".erlang.cookie"
        cookie.write_text(uuid4().hex)
        cookie.chmod(0o400)
        self.names = Program("epmd", ("epmd",), environment, folder)
        self.server = Program("rabbitmq", (str(SERVER), "-noinput"), environment, folder, stop_seconds=STOP_SECONDS)

    def names_listen(self) -> bool:
        """Whether the name server answers."""
        return _listens(self._names)

    def listens(self) -> bool:
        """Whether the node answers."""
        return _listens(self._amqp)


@contextmanager
def rabbitmq(folder: Path) -> Iterator[str]:
    """The address of a node for the length of the block."""
    node = Node(folder)
    with ExitStack() as running:
        for program, listens in ((node.names, node.names_listen), (node.server, node.listens)):
            child = Child(program, node.layout)
            running.callback(child.stop, STOP_SECONDS)
            child.wait_until(listens, START_SECONDS, lambda: False)
        yield node.url


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
