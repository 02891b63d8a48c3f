"""The process of one step, seen from outside: started, heard, held to its time, and ended with all that is below it."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from datetime import timedelta
from typing import IO, Any

from contracts.errors import BatchmillError, CompressionFailed, describe
from worker.compression.order import Progress

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "worker.compression")
REST = timedelta(seconds=15)
"""How long a job rests that this host cannot work on now."""
LOOK_SECONDS = 0.05
LINE = 2_000
"""Characters of a line that a library wrote that are kept."""
LAST_SECONDS = 5.0
"""How long the last words of a process that was killed are waited for."""
ANSWER_SECONDS = 120.0
"""The same of one that ended well: its answer stands behind progress that a database which hangs takes long to note."""


class StepFailed(Exception):
    """What a job fails of: a stable code, and what happened."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @classmethod
    def of(cls, error: Exception) -> "StepFailed":
        """What any error means for the job, in one line."""
        if isinstance(error, StepFailed):
            return error
        if disk_is_full(error):
            advice = "free some space where workers keep their files (BATCHMILL_HOME), and submit again"
            return cls(CompressionFailed.code, f"the disk is full: {advice}")
        if isinstance(error, BatchmillError):
            return cls(error.code, " ".join(str(error).split()))
        return cls(CompressionFailed.code, describe(error))


class Postponed(Exception):
    """What it needs is not there now, and may be later: the lease is given back, and the job rests for a while."""


class Interrupted(Exception):
    """The lease is gone, or this process is to end: nobody wants the answer any more."""


def run(
    request: Mapping[str, Any],
    *,
    seconds: float,
    interrupted: threading.Event,
    progress: Progress,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = COMMAND,
    inherited: Sequence[int] = (),
) -> dict[str, Any]:
    """What a process of its own answers to a request; it is gone afterwards, whatever comes of it.

    The process leads a group, so that what it starts ends with it. It watches its standard input: at the end of that,
    which this process's death is too, it kills its group.

    Args:
        request: As JSON.
        seconds: After so long it is killed.
        interrupted: It is killed at once when this is set.
        progress: Told what it says of its progress, on a thread of its own.
        environment: Of the process; that of this one when not given.
        command: What to start.
        inherited: Descriptors that stay open in it.

    Raises:
        StepFailed: It said so, took too long, or died.
        Interrupted: It was killed for that.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        pass_fds=inherited,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    heard = _Heard(process.stdout, process.stderr, progress)
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        deadline = time.monotonic() + seconds
        # Not reaped yet, its number is no one else's, nor is its group's.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if interrupted.wait(LOOK_SECONDS):
                raise Interrupted
            if time.monotonic() > deadline:
                raise StepFailed(
                    CompressionFailed.code,
                    f"it was ended, as it took longer than {seconds:,.0f} s: make it smaller, or raise "
                    "BATCHMILL_COMPRESSION_STEP_SECONDS",
                )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
        heard.join(ANSWER_SECONDS if process.returncode == 0 else LAST_SECONDS)
    return _answer(process.returncode, heard)


class _Heard:
    """What a process says: its answer and its progress, as lines of JSON, and whatever its libraries print."""

    def __init__(self, said: IO[bytes], printed: IO[bytes], progress: Progress) -> None:
        self.answer: dict[str, Any] = {}
        self.last = ""
        """The last line that was printed."""
        self._progress = progress
        self._threads = [self._thread(said, self._hear), self._thread(printed, self._note)]

    def join(self, seconds: float) -> None:
        """Hear it out, for so long at most."""
        for thread in self._threads:
            thread.join(seconds)

    @staticmethod
    def _thread(stream: IO[bytes], take: Callable[[str], None]) -> threading.Thread:
        def loop() -> None:
            with stream:
                for line in stream:
                    take(line.decode(errors="replace").rstrip())

        # Lines that are logged there name the job, as those of this thread do.
        thread = threading.Thread(target=copy_context().run, args=(loop,), name="child", daemon=True)
        thread.start()
        return thread

    def _hear(self, line: str) -> None:
        message = json.loads(line)
        match message.pop("kind"):
            case "progress":
                self._progress(message["fraction"], message["message"])
            case "log":
                logging.getLogger(message["logger"]).log(message["level"], "%s", message["message"])
            case kind:
                self.answer[kind] = message

    def _note(self, line: str) -> None:
        if line.strip():
            self.last = line[:LINE]
            log.info("%s", self.last)


def _answer(code: int, heard: _Heard) -> dict[str, Any]:
    if "failure" in heard.answer:
        failure = heard.answer["failure"]
        raise StepFailed(failure["code"], failure["message"])
    if code == 0 and "answer" in heard.answer:
        found: dict[str, Any] = heard.answer["answer"]["value"]
        return found
    if code == -signal.SIGKILL:
        what = (
            "its process was killed (SIGKILL), as the kernel does when memory is used up: give it more, or less to do"
        )
    elif code < 0:
        what = f"its process died of {signal.Signals(-code).name}"
    else:
        what = f"its process ended with code {code} and gave no result"
    raise StepFailed(CompressionFailed.code, f"{what}: {heard.last}" if heard.last else what)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether that is what an error, of any library, comes from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
