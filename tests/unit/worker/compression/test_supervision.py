import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests import standin_step
from worker.compression.supervision import Interrupted, StepFailed, run

COMMAND = (sys.executable, str(Path(standin_step.__file__)))
ROOT = Path(standin_step.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def ask(behaviour: str, **changes: object) -> object:
    how: dict[str, object] = {
        "seconds": 60.0,
        "interrupted": threading.Event(),
        "progress": lambda fraction, message: None,
        "environment": ENVIRONMENT,
        "command": COMMAND,
    }
    return run({"do": behaviour}, **{**how, **changes})  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_what_libraries_print_is_logged_and_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "worker.compression"):
        assert ask("print") == "the answer"
    lines = [record.getMessage() for record in caplog.records]
    assert {"a library prints", "and writes to the descriptor", "and to stderr"} <= set(lines)


def test_progress_is_told_a_few_times_a_second() -> None:
    told: list[tuple[float, str]] = []
    assert ask("report", progress=lambda fraction, message: told.append((fraction, message))) == "done"
    assert told[0] == (0.0, "0 of 10")
    assert told[-1] == (1.0, "10 of 10")
    assert 3 <= len(told) <= 5


@pytest.mark.parametrize(
    ("behaviour", "code", "message"),
    [
        ("die", "compression_failed", r"its process was killed \(SIGKILL\), as the kernel does when memory is used up"),
        ("crash", "compression_failed", "its process died of SIGSEGV"),
        ("exit", "compression_failed", "its process ended with code 3 and gave no result: about to leave"),
        ("refuse", "invalid_request", "^the model has no layers$"),
        ("break", "compression_failed", "^KeyError: 'a defect'$"),
        ("fill", "compression_failed", "^the disk is full: free some space"),
    ],
)
def test_a_failure_says_what_happened(behaviour: str, code: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=message) as failed:
        run(
            {"do": behaviour, "folder": str(tmp_path)},
            seconds=60,
            interrupted=threading.Event(),
            progress=lambda *_: None,
            environment=ENVIRONMENT,
            command=COMMAND,
        )
    assert failed.value.code == code


def test_one_that_takes_too_long_is_ended_with_all_below_it() -> None:
    below: list[int] = []
    with pytest.raises(StepFailed, match="longer than 3 s.*BATCHMILL_COMPRESSION_STEP_SECONDS"):
        ask("fork", seconds=3.0, progress=lambda _, pid: below.append(int(pid)))
    assert gone(below[0])


def test_an_interruption_ends_it_at_once(eventually: Callable[..., None]) -> None:
    interrupted = threading.Event()
    below: list[int] = []
    ended: list[float] = []

    def wait() -> None:
        with pytest.raises(Interrupted):
            ask("fork", interrupted=interrupted, progress=lambda _, pid: below.append(int(pid)))
        ended.append(time.monotonic())

    waiting = threading.Thread(target=wait)
    waiting.start()
    eventually(lambda: below)
    began = time.monotonic()
    interrupted.set()
    waiting.join(10)
    assert ended[0] - began < 1
    assert gone(below[0])


def test_what_it_leaves_running_is_ended(eventually: Callable[..., None]) -> None:
    pid = ask("leave")
    assert isinstance(pid, int)
    eventually(lambda: gone(pid))


def test_it_dies_with_the_worker_and_so_does_what_it_started(eventually: Callable[..., None]) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", "import test_supervision; test_supervision.ask('fork', progress=print)"],
        env={**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    below = int(worker.stdout.readline().split()[1])
    step = psutil.Process(below).ppid()
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    eventually(lambda: gone(step) and gone(below))
