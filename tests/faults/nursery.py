"""A process that has imported everything and forks on request: a worker is up in a moment instead of seconds.

It has one thread, so that forking is safe. Orders come as lines of JSON on standard input, answers leave on standard
output: `{"born": pid}` for each order, `{"died": pid, "code": code}` for each child that it reaped. It ends, and its
children with it, when its input closes. A child's code is negative when a signal ended it. A child ends as any program
does: it runs what is to run at the end, and waits for its threads.
"""

import ctypes
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
START_SECONDS = 120.0
"""How long it may take to import everything, which comes before the first birth."""
END_SECONDS = 20.0
"""How long a child may take to be reaped once it was killed."""


class Process:
    """A child of the nursery, named by a descriptor that cannot come to mean another process."""

    def __init__(self, pid: int, ordinal: int, role: str, log: Path) -> None:
        self.pid = pid
        self.ordinal = ordinal
        """Counts up over the run; the process finds it in `FAULTS_ORDINAL`."""
        self.role = role
        self.log = log
        self.code: int | None = None
        """How it ended, once it did."""
        self.stopped = False
        """Whether it stands still for the time being."""
        self.wired = False
        """Whether its servers are behind the wire."""
        self._handle = os.pidfd_open(pid)

    def send(self, what: signal.Signals) -> None:
        """Send a signal; one that has ended already stays ended."""
        if self.code is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, what)

    def close(self) -> None:
        os.close(self._handle)


class Nursery:
    """The driver's end: forks children of any role, and learns how they ended.

    Args:
        module: A program that calls `serve` with the roles that there are.
    """

    def __init__(self, module: str = "tests.faults.roles") -> None:
        # A second thread, of numpy's or torch's arithmetic, would not survive a fork.
        self._alone = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._popen = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | self._alone,
        )
        assert self._popen.stdout is not None
        self._answers = selectors.DefaultSelector()
        self._answers.register(self._popen.stdout, selectors.EVENT_READ)
        self._buffer = b""
        self._early: list[dict[str, int]] = []
        """Deaths that were heard of while a birth was waited for."""
        self._living: dict[int, Process] = {}
        self._born = 0

    def fork(self, role: str, environment: Mapping[str, str], logs: Path) -> Process:
        """A new process of one of the roles, with these variables besides our own, and a log in that folder."""
        self._born += 1
        log = logs / f"{self._born:05d}-{role}.log"
        whole = {**os.environ, **self._alone, **environment, "FAULTS_ORDINAL": str(self._born)}
        order = {"role": role, "log": str(log), "environment": whole}
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(order).encode() + b"\n")
        self._popen.stdin.flush()
        while True:
            answers = self._read(START_SECONDS)
            self._early += [answer for answer in answers if "died" in answer]
            for answer in answers:
                if "born" in answer:
                    process = Process(answer["born"], self._born, role, log)
                    self._living[process.pid] = process
                    return process

    def deaths(self) -> list[Process]:
        """Those that ended since the last call."""
        died = []
        for answer in [*self._early, *self._read(0.0)]:
            process = self._living.pop(answer["died"])
            process.code = answer["code"]
            process.close()
            died.append(process)
        self._early.clear()
        return died

    def clear(self) -> None:
        """Kill every child that still runs, and wait until none is left."""
        for process in self._living.values():
            process.send(signal.SIGKILL)
        deadline = time.monotonic() + END_SECONDS
        while self._living:
            self._early += self._read(0.1)
            self.deaths()
            if time.monotonic() > deadline:
                raise TimeoutError("the nursery does not bury its children")

    def close(self) -> None:
        """End everything that still runs."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.wait(20)
        self._popen.stdout.close()
        self._answers.close()
        for process in self._living.values():
            process.close()

    def _read(self, seconds: float) -> list[dict[str, int]]:
        if self._answers.select(seconds):
            assert self._popen.stdout is not None
            chunk = os.read(self._popen.stdout.fileno(), 1 << 16)
            if not chunk:
                raise RuntimeError("the nursery ended; its error is on stderr")
            self._buffer += chunk
        elif seconds >= START_SECONDS:
            raise TimeoutError("the nursery does not answer")
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]


def serve(roles: Mapping[str, Callable[[], int | None]]) -> None:
    """Fork for each order, and reap."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    ready = selectors.DefaultSelector()
    ready.register(0, selectors.EVENT_READ)
    ready.register(woken, selectors.EVENT_READ)
    children: set[int] = set()
    buffer = b""
    while True:
        for key, _ in ready.select():
            if key.fd == woken:
                with suppress(BlockingIOError):
                    os.read(woken, 4096)
                _reap(children)
                continue
            chunk = os.read(0, 1 << 16)
            if not chunk:
                for child in children:
                    os.kill(child, signal.SIGKILL)  # ours and not reaped: the number is still its own
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                child = os.fork()
                if child == 0:
                    _become(json.loads(line), roles)
                children.add(child)
                _answer(born=child)


def _reap(children: set[int]) -> None:
    for child in list(children):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            children.discard(pid)
            _answer(died=pid, code=os.waitstatus_to_exitcode(status))


def _answer(**answer: int) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _become(order: dict[str, object], roles: Mapping[str, Callable[[], int | None]]) -> NoReturn:
    """What the child does instead of going on."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    environment = order["environment"]
    assert isinstance(environment, dict)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()  # or all children would draw the same numbers
    sys.argv = [str(order["role"])]
    sys.exit(roles[str(order["role"])]() or 0)
