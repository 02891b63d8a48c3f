"""Child processes: started in their own sessions, ended with all that is below them, found again when orphaned."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from contracts.errors import StackError
from stack.layout import Layout
from stack.state import Identity, write_whole

ORPHAN_SECONDS = 5.0
"""How long what a dead supervisor left behind may take to end by itself."""
_LOG_BYTES = 32 * 2**20
_PAUSE = 0.02
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class StopAsked(Exception):
    """The stack is to end; whoever waits for something gives up."""


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Program:
    """What to run, and how it likes to be ended."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    """Its working directory."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 2.0
    """After that, it and everything below it is killed."""
    before: Callable[[], None] = _nothing
    """Runs ahead of each start: it clears what the last run left."""
    after: Callable[[int], None] = _nothing
    """Runs when it ended on its own, with the pid that it had: it clears what a crash left."""
    user: int | None = None
    """The user and group to run as, where they differ from ours."""
    group: int | None = None
    sockets: tuple[int, ...] = ()
    """Descriptors that it inherits, under the same numbers."""
    address: str | None = None
    """Where people reach it, if they do."""


class _Record(BaseModel):
    """What a pid file holds."""

    model_config = ConfigDict(frozen=True)

    identity: Identity
    stop_signal: signal.Signals


class Child:
    """A running program; the thread that starts it must live as long as it does, for the kernel ends both."""

    def __init__(self, program: Program, layout: Layout) -> None:
        self.program = program
        self.log = layout.logs / f"{program.name}.log"
        program.before()
        _rotate(self.log)
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        self.born = time.monotonic()
        with self.log.open("ab") as log:
            self._popen = spawn(program, log.fileno())
        try:
            record = _Record(identity=Identity.of(self._popen.pid), stop_signal=program.stop_signal)
            write_whole(layout.run / f"{program.name}.pid", record)
        except OSError:  # a full disk: whoever nobody could find again must not run
            self._popen.kill()
            self._popen.wait()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def ended(self) -> int | None:
        """Its exit code once it ended on its own; what it left in its process group is killed then."""
        if self._popen.returncode is None:
            # Until it is reaped, its number belongs to no one else, and neither does its group's.
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self.reap()
        return self._popen.returncode

    def wait_until(self, answers: Callable[[], bool], seconds: float, stop_asked: Callable[[], bool]) -> None:
        """Wait until it answers.

        Raises:
            StackError: It ended, or did not answer in time; the message holds the end of its log.
            StopAsked: Nobody wants it any more.
        """
        deadline = time.monotonic() + seconds
        while not answers():
            if stop_asked():
                raise StopAsked
            if (code := self.ended) is not None:
                raise StackError(f"{self.program.name} ended with code {code}:\n{tail(self.log, self.log_start)}")
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.program.name} did not answer within {seconds:.0f} s:\n{tail(self.log, self.log_start)}"
                )
            time.sleep(_PAUSE)

    def stop(self, seconds: float) -> None:
        """Ask it to end, wait so long, then kill it and everything below it."""
        stop_together([self], seconds)

    def reap(self) -> None:
        """Note that it ended; what it left in its process group is killed."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()


def stop_together(children: Iterable[Child], seconds: float) -> None:
    """Ask all of them to end, wait so long, then kill those that run, and everything below them."""
    running = [child for child in children if child.ended is None]
    end([(psutil.Process(child.pid), child.program.stop_signal) for child in running], seconds)
    for child in running:
        child.reap()


def spawn(program: Program, output: int) -> subprocess.Popen[bytes]:
    """Start the program in a session of its own, so that Ctrl-C in a terminal does not reach it.

    Raises:
        StackError: The system cannot start it.
    """
    parent = os.getpid()

    def tie() -> None:
        # Between fork and exec: the kernel ends the child when its parent dies, however that dies.
        if sys.platform == "linux":
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(program.stop_signal))
            if os.getppid() != parent:
                os._exit(1)

    try:
        return subprocess.Popen(
            program.command,
            cwd=program.folder,
            env=dict(program.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=tie,
            user=program.user,
            group=program.group,
            extra_groups=None if program.group is None else [],
            pass_fds=program.sockets,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StackError(f"{program.name} cannot be started: {error}") from error


def end(processes: Iterable[tuple[psutil.Process, signal.Signals]], seconds: float) -> None:
    """Send each process its signal, wait so long for all of them, then kill them and what was below them."""
    asked = list(processes)
    family = [process for process, _ in asked]
    for process, polite in asked:
        with suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
            process.send_signal(polite)
            process.send_signal(signal.SIGCONT)
    if not wait_gone((process for process, _ in asked), seconds) or not wait_gone(family, 0.5):
        for process, _ in asked:
            with suppress(psutil.NoSuchProcess):
                family += process.children(recursive=True)  # those that it started since
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_gone(family, 5.0)


def wait_gone(processes: Iterable[psutil.Process], seconds: float) -> bool:
    """Wait until none of the processes runs; False when one still does."""
    deadline = time.monotonic() + seconds
    running = list(processes)
    while running := [process for process in running if _alive(process)]:
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True


def end_orphans(layout: Layout) -> bool:
    """End what a dead supervisor of this home left running; whether there was anything.

    Only for the holder of the supervisor's lock.
    """
    orphans: list[tuple[psutil.Process, signal.Signals]] = []
    files = list(layout.run.glob("*.pid"))
    for file in files:
        with suppress(ValidationError):  # half-written: then the kernel has ended the child with its parent
            record = _Record.model_validate_json(file.read_bytes())
            if process := record.identity.find():
                orphans.append((process, record.stop_signal))
    end(orphans, ORPHAN_SECONDS)
    for file in files:
        file.unlink(missing_ok=True)
    return bool(orphans)


def tail(log: Path, start: int = 0, lines: int = 20) -> str:
    """The last lines of a log, of what was written from an offset on."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(start if start <= log.stat().st_size else 0)
        return "\n".join(file.read()[-16_384:].decode(errors="replace").splitlines()[-lines:])


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
