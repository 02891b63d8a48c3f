"""A mill whose programs are forked from a process that has imported everything: each is up in a moment.

They are the real programs, with environments, logs and exit codes of their own. Tests that use the other mill see them
start from nothing, find a device, and measure it.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from contracts.fake import parse_fake
from producer import Client
from tests.conftest import Mill
from tests.faults.device import give_budget
from tests.faults.nursery import Nursery, Process

PROGRAMS = ("worker", "worker.beat", "worker.webhooks")
PASS_TOKENS = 512
TOKENS_AN_INPUT = 26
"""Of the 100 characters that inputs have here."""


class Child:
    """A child of the nursery, handled like `subprocess.Popen`."""

    def __init__(self, nursery: Nursery, process: Process) -> None:
        self._nursery = nursery
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        self._nursery.deaths()
        return self._process.code

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and timeout is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self._process.role, timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        self._process.send(signal.Signals(number))

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedMill(Mill):
    """A mill with a nursery."""

    def __init__(self, nursery: Nursery, folder: Path, database_url: str, broker_url: str) -> None:
        super().__init__(folder, database_url, broker_url)
        self._nursery = nursery

    def _start(self, module: str, home: Path, **settings: str) -> Any:
        if module not in PROGRAMS:
            return super()._start(module, home, **settings)
        environment = {**self.environment, "BATCHMILL_HOME": str(home), **settings}
        forked = self._nursery.fork(module, environment, home)
        child = Child(self._nursery, forked)
        self._logs[child.pid] = forked.log
        self._running.callback(self.stop, child)
        return child


def add_fake(client: Client, name: str, source: str, tokens_per_second: float | None = None) -> None:
    """Register a fake model, and say how fast it is; as fast as its delay lets it be, where nothing else is given."""
    delay = parse_fake(source).item_delay or 1e-5
    model = client.models.add(name, source)
    give_budget(client._database, model.id, PASS_TOKENS, tokens_per_second or TOKENS_AN_INPUT / delay)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where the programs of all tests of this process are born."""
    with closing(Nursery("tests.acceptance.programs")) as nursery:
        yield nursery


@pytest.fixture
def forked(tmp_path: Path, database_url: str, broker_url: str, nursery: Nursery) -> Iterator[ForkedMill]:
    """Database and broker of the test's own, with no worker yet."""
    with closing(ForkedMill(nursery, tmp_path, database_url, broker_url)) as mill:
        yield mill


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
    make_database: Callable[..., str],
    make_broker: Callable[[], str],
    nursery: Nursery,
) -> Iterator[ForkedMill]:
    """The same with one worker and beat, shared by the tests of a module."""
    with closing(ForkedMill(nursery, tmp_path_factory.mktemp("mill"), make_database(), make_broker())) as mill:
        mill.worker()
        mill.beat()
        yield mill
