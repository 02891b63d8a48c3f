"""The process of one step, seen from inside: a request comes in as JSON, progress and the answer go out as JSON."""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from contracts.errors import BatchmillError
from contracts.logs import OURS
from worker.compression.order import Progress
from worker.compression.supervision import StepFailed

Work: TypeAlias = Callable[[dict[str, Any], Progress], Any]
"""Makes of a request what is to be answered, as JSON has it."""

MOST_PROGRESS = 0.25
"""Seconds at least between two lines of progress."""


def serve(work: Work) -> int:
    """Answer the one request on standard input; the exit code.

    What libraries print to standard output goes to standard error: the lines there are ours alone.
    """
    said = _Said(os.dup(1))
    os.dup2(2, 1)
    _log_to(said)
    request = json.loads(_first_line())
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    try:
        said.say("answer", value=work(request, said.progress))
    except Exception as error:
        if not isinstance(error, BatchmillError):
            logging.getLogger(__name__).exception("a step failed")
        failed = StepFailed.of(error)
        said.say("failure", code=failed.code, message=str(failed))
        return 1
    return 0


class _Said:
    """The lines that the worker reads."""

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "w", encoding="utf-8")
        self._lock = threading.Lock()
        self._quiet_until = 0.0

    def say(self, kind: str, **fields: Any) -> None:
        """One line."""
        with self._lock:
            self._stream.write(json.dumps({"kind": kind, **fields}) + "\n")
            self._stream.flush()

    def progress(self, fraction: float, message: str) -> None:
        """How far the step is; what comes too soon after the last is not told."""
        now = time.monotonic()
        if now >= self._quiet_until or fraction >= 1:
            self._quiet_until = now + MOST_PROGRESS
            self.say("progress", fraction=min(max(float(fraction), 0.0), 1.0), message=message)


class _Handler(logging.Handler):
    """Hands records to the worker, whose log they are in."""

    def __init__(self, said: _Said) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.say("log", logger=record.name, level=record.levelno, message=self.format(record))


def _log_to(said: _Said) -> None:
    """Ours from what is worth telling on, of libraries what is wrong; the worker leaves out what it is not to log."""
    root = logging.getLogger()
    root.handlers[:] = [_Handler(said)]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)


def _first_line() -> bytes:
    """Unbuffered: a thread that reads on would hold the buffer's lock when the process ends."""
    found = b""
    while not found.endswith(b"\n"):
        if not (more := os.read(0, 65_536)):
            sys.exit("the request ended before it was whole")
        found += more
    return found


def _end_with_the_worker() -> None:
    """Wait for the end of standard input, which is the worker's: then nobody wants an answer."""
    while os.read(0, 4096):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
