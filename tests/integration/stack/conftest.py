import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from contracts.settings import Settings
from stack.embedded import down


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of its own; what a failed test left running there is ended."""
    folder = Path(tempfile.mkdtemp(prefix="bm-"))
    yield folder / "home"
    if (folder / "home").exists():
        down(Settings(home=folder / "home"))
    shutil.rmtree(folder)


@pytest.fixture
def eventually() -> Callable[..., None]:
    def wait(condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.02)

    return wait


@pytest.fixture
def running() -> Callable[[Path], list[psutil.Process]]:
    """What runs for a home: its folder is in the command line or is the working directory."""

    def find(home: Path) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                named = any(str(home) in argument for argument in process.cmdline())
                if (named or process.cwd().startswith(str(home))) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    return find
