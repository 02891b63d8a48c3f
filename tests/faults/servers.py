"""Postgres and a broker of the run's own, which can be killed, frozen, wiped and started again."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psycopg
from kombu import Connection

from contracts.names import DEFAULT_POOL
from stack.layout import Layout
from stack.postgres import Postgres
from stack.processes import Child, Program
from stack.valkey import Valkey
from storage import schema
from storage.broker import queue
from tests.rabbitmq_node import Node

START_SECONDS = 60.0


class Server:
    """One server process; only the thread that made it may start it, as the kernel ends both together."""

    def __init__(self, program: Program, layout: Layout, answers: Callable[[], bool]) -> None:
        self._program = program
        self._layout = layout
        self._answers = answers
        self._child = Child(program, layout)
        self.ready()

    def ready(self) -> None:
        """Wait until it answers."""
        self._child.wait_until(self._answers, START_SECONDS, lambda: False)

    def send(self, what: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._child.pid, what)

    def restart(self, how: signal.Signals) -> None:
        """End it by a signal and start it again; back once it answers."""
        self.send(how)
        self._child.stop(START_SECONDS)
        self._child = Child(self._program, self._layout)
        self.ready()

    def stop(self) -> None:
        self.send(signal.SIGCONT)
        self._child.stop(self._program.stop_seconds)


class SmallDisk:
    """A file system of a few megabytes in a namespace of its own, for Postgres to fill.

    It lives as long as its holder, so that Postgres may come and go. Where the kernel refuses the namespace, there is
    none.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir()
        mount = f"mount -t tmpfs -o size={megabytes}m,mode=0700 tmpfs {folder} && echo mounted && exec sleep infinity"
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
        self._holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        self.works = self._holder.stdout.readline() == b"mounted\n"
        self._holder.stdout.close()
        self.folder = folder
        self.prefix = ("nsenter", f"--target={self._holder.pid}", "--user", "--mount", "--preserve-credentials")
        self._outside = Path(f"/proc/{self._holder.pid}/root{folder}")

    def fill(self) -> None:
        """Leave no room."""
        with (self._outside / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while ballast.write(bytes(1 << 20)):
                pass

    def empty(self) -> None:
        """Give the room back."""
        (self._outside / "ballast").unlink(missing_ok=True)

    def stop(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Database:
    """The run's Postgres, with one database; where the kernel allows it, results live on a small disk."""

    def __init__(self, home: Path, disk_megabytes: int) -> None:
        layout = Layout.of(home).prepare()
        postgres = Postgres(layout)
        self._server_url = postgres.url
        self.url = self._of("world")
        self.disk = SmallDisk(home / "disk", disk_megabytes)
        program = postgres.program
        if self.disk.works:
            program = replace(program, command=(*self.disk.prefix, *program.command))
        self.server = Server(program, layout, postgres.listens)
        postgres.create_database()
        self._order("CREATE DATABASE template")
        schema.upgrade(self._of("template"))
        if self.disk.works:
            self._order(f"CREATE TABLESPACE small LOCATION '{self.disk.folder}'")
            self._order("ALTER TABLE results SET TABLESPACE small", "template")

    def renew(self) -> None:
        """An empty database in the place of the one before."""
        self._order("DROP DATABASE IF EXISTS world WITH (FORCE)")
        self._order("CREATE DATABASE world TEMPLATE template STRATEGY wal_log")

    def _of(self, name: str) -> str:
        return self._server_url.replace("/batchmill?", f"/{name}?")

    def _order(self, statement: str, name: str = "batchmill") -> None:
        with psycopg.connect(self._of(name), autocommit=True) as connection:
            connection.execute(statement.encode())

    def stop(self) -> None:
        self.server.stop()
        self.disk.stop()


class Broker:
    """The run's broker: `valkey` or `rabbitmq`."""

    def __init__(self, home: Path, kind: str) -> None:
        self.kind = kind
        self._names: Child | None = None
        if kind == "valkey":
            layout = Layout.of(home).prepare()
            valkey = Valkey(layout)
            self.url = valkey.url
            self.server = Server(valkey.program, layout, valkey.listens)
        else:
            node = Node(home)
            self.url = node.url
            self._names = Child(node.names, node.layout)
            self._names.wait_until(node.names_listen, START_SECONDS, lambda: False)
            self.server = Server(node.server, node.layout, node.listens)

    def wipe(self) -> None:
        """FLUSHALL; where there is no such thing, the queue is deleted with all that waits in it."""
        with Connection(self.url) as connection:
            channel = connection.channel()
            if self.kind == "valkey":
                channel.client.flushall()
            else:
                queue(DEFAULT_POOL)(channel).delete()

    def push_junk(self, messages: list[tuple[bytes, str]]) -> None:
        """Put bodies with their content types into the queue of tickets, as a stranger would."""
        with Connection(self.url) as connection, connection.Producer() as producer:
            tickets = queue(DEFAULT_POOL)
            for body, content_type in messages:
                producer.publish(
                    body,
                    routing_key=tickets.routing_key,
                    exchange=tickets.exchange,
                    declare=[tickets],
                    content_type=content_type,
                    content_encoding="binary",
                )
            if self.kind == "valkey":  # not even an envelope
                connection.channel().client.lpush(tickets.name, *(body for body, _ in messages))

    def stop(self) -> None:
        self.server.stop()
        if self._names is not None:
            self._names.stop(5)


def remove(home: Path) -> None:
    """What a run left on the disk."""
    shutil.rmtree(home, ignore_errors=True)
