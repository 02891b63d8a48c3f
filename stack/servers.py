"""Postgres and Valkey of one home, as children of this process."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stack.layout import Layout
from stack.locks import hold
from stack.postgres import Postgres
from stack.processes import Child, Program, end_orphans
from stack.state import StackAddresses
from stack.valkey import Valkey

START_SECONDS = 45.0
"""How long a server may take to answer: recovery after a crash included."""
LOCK_SECONDS = 15.0
"""Longer than it takes to end orphans, which is what the lock is held for when no supervisor runs."""


class Servers:
    """Both servers, before they run.

    Raises:
        StackError: A wheel is missing, the home cannot be used, or Postgres cannot be run by this user.
    """

    def __init__(self, layout: Layout) -> None:
        self._postgres = Postgres(layout)
        self._valkey = Valkey(layout)
        self.addresses = StackAddresses(self._postgres.url, self._valkey.url)

    @property
    def programs(self) -> tuple[Program, Program]:
        """In the order in which to start them."""
        return self._postgres.program, self._valkey.program

    def settle(self, postgres: Child, valkey: Child, stop_asked: Callable[[], bool]) -> None:
        """Wait until both answer, and make the database.

        Raises:
            StackError: One of them does not come up.
            StopAsked: Nobody wants them any more.
        """
        postgres.wait_until(self._postgres.listens, START_SECONDS, stop_asked)
        valkey.wait_until(self._valkey.listens, START_SECONDS, stop_asked)
        self._postgres.create_database()


@contextmanager
def servers(home: Path) -> Iterator[StackAddresses]:
    """The two servers alone for the length of the block, with an empty schema; for tests and measurements.

    Call it in a thread that outlives the block: the kernel ends the servers with it.

    Raises:
        StackError: They do not come up, or a stack runs under that home.
    """
    layout = Layout.of(home).prepare()
    with hold(layout.supervisor_lock, LOCK_SECONDS):
        end_orphans(layout)
        both = Servers(layout)
        with ExitStack() as running:
            postgres, valkey = (_start(program, layout, running) for program in both.programs)
            both.settle(postgres, valkey, lambda: False)
            yield both.addresses


def _start(program: Program, layout: Layout, running: ExitStack) -> Child:
    child = Child(program, layout)
    running.callback(child.stop, program.stop_seconds)
    return child
