"""The embedded Postgres: its files, its command line and its database."""

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from contracts.errors import StackError
from stack.layout import Layout
from stack.privileges import choose_account
from stack.processes import ORPHAN_SECONDS, Program, spawn, tail, wait_gone
from stack.sockets import POSTGRES_SOCKET, socket_folder
from stack.wheels import postgres_install

NAME = "postgres"
_DATABASE = "batchmill"
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": "5432",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "work_mem": "32MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "2GB",
    "fsync": "on",
    "synchronous_commit": "on",
    # Plans of short queries cost less than compiling them.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
}
_INITDB = (
    f"--username={_DATABASE}",
    "--auth=trust",  # the folder of the socket lets nobody else in
    "--encoding=UTF8",
    # Built in, so that an index does not depend on the system's libc.
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--locale=C",
)
_INITDB_SECONDS = 60.0


class Postgres:
    """One Postgres of one home.

    Raises:
        StackError: The wheel is missing, or Postgres cannot be run by this user.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._account = choose_account(postgres_install(), layout.postgres)
        self._data = self._account.state / "data"
        if self._account.user is None:
            self._sockets = socket_folder(layout.home)
        else:
            self._sockets = self._account.state / "run"
            self._sockets.mkdir(mode=0o700, exist_ok=True)
            os.chown(self._sockets, self._account.user, -1)
        self.url = f"postgresql://{_DATABASE}@/{_DATABASE}?host={self._sockets}&port={_SETTINGS['port']}"

    @property
    def program(self) -> Program:
        """The server."""
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        return Program(
            name=NAME,
            command=(
                *self._account.binary("postgres"),
                *("-D", str(self._data), f"--unix_socket_directories={self._sockets}", *settings),
            ),
            environment=_environment(),
            folder=Path("/"),
            stop_signal=signal.SIGINT,  # "fast": ends sessions, then shuts down in order
            stop_seconds=5.0,
            before=self._prepare,
            user=self._account.user,
            group=self._account.group,
        )

    def listens(self) -> bool:
        """Whether the server answers a query, in whichever database."""
        return _answers(self.url, "postgres")

    def create_database(self) -> None:
        """Make the database and its extension where they do not exist.

        Raises:
            StackError: The server refused.
        """
        try:
            with psycopg.connect(self.url, dbname="postgres", autocommit=True) as connection:
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_DATABASE]).fetchone():
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_DATABASE)))
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.Error as error:
            raise StackError(f"the database in {self._data} cannot be set up: {error}") from error

    def _prepare(self) -> None:
        """Make sure that the data folder is whole and that no dead server still occupies it."""
        if not (self._data / "PG_VERSION").exists():
            self._initialize()
        # A killed postmaster's backends may still run for a moment: no other claim on the data counts.
        leftovers = _serving(self._data)
        if not wait_gone(leftovers, ORPHAN_SECONDS):
            for process in leftovers:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            wait_gone(leftovers, ORPHAN_SECONDS)
        # The number in these files may belong to another process by now, which keeps Postgres from starting.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        for name in (POSTGRES_SOCKET, f"{POSTGRES_SOCKET}.lock"):
            (self._sockets / name).unlink(missing_ok=True)

    def _initialize(self) -> None:
        """Run initdb beside the data folder and move the result there, so that it is whole or absent."""
        for left in self._account.state.glob("initdb-*"):
            shutil.rmtree(left, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix="initdb-", dir=self._account.state))
        if self._account.user is not None:
            os.chown(draft, self._account.user, -1)
        log = self._layout.logs / "initdb.log"
        program = Program(
            name="initdb",
            command=(*self._account.binary("initdb"), "-D", str(draft), *_INITDB),
            environment=_environment(),
            folder=Path("/"),
            stop_signal=signal.SIGKILL,
            user=self._account.user,
            group=self._account.group,
        )
        with log.open("wb") as output:
            process = spawn(program, output.fileno())
        try:
            code = process.wait(_INITDB_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code != 0:
            raise StackError(f"initdb ended with code {code}:\n{tail(log)}")
        draft.replace(self._data)


def answers(url: str) -> bool:
    """Whether the database at that address answers a query."""
    return _answers(url)


def _answers(url: str, database: str = _DATABASE) -> bool:
    try:
        with psycopg.connect(url, dbname=database, connect_timeout=2) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def _serving(data: Path) -> list[psutil.Process]:
    """Every process of a server on that data folder: their working directory tells."""
    serving = {"name": "postgres", "cwd": str(data.resolve())}
    return [process for process in psutil.process_iter(["name", "cwd"]) if process.info == serving]


def _environment() -> dict[str, str]:
    """Ours, without what would set Postgres' options or name a locale that is not installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return {**kept, "LC_ALL": "C"}
