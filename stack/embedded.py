"""The embedded stack from outside: find it, start it, end it, look at it."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from contracts.errors import ConfigurationError, StackError
from contracts.settings import Settings
from stack import postgres, valkey
from stack.layout import Layout
from stack.locks import held, hold
from stack.processes import end, end_orphans, tail
from stack.programs import COMPRESSOR, WORKER, environment, ready_file
from stack.servers import LOCK_SECONDS
from stack.state import ChildState, StackAddresses, StackState, read_state

START_SECONDS = 60.0
SUPERVISOR = (sys.executable, "-m", "stack", "--detach")
_PAUSE = 0.05


@dataclass(frozen=True)
class StackStatus:
    """What runs under a home."""

    home: Path
    running: bool
    """A supervisor lives."""
    ready: bool
    """The servers answer and the schema is up to date."""
    worker_ready: bool
    """The worker takes tickets."""
    supervisor_pid: int | None
    addresses: StackAddresses | None
    children: tuple[ChildState, ...]
    compressor_ready: bool = False
    """The worker that compresses takes tickets."""


def ensure(
    settings: Settings, *, seconds: float = START_SECONDS, command: Sequence[str] = SUPERVISOR
) -> StackAddresses:
    """Where the stack of this home listens; it is started, detached from the caller, when it does not run.

    Any number of processes may call it at once. It does not wait for the worker, which may load a model first.

    Args:
        settings: Name the home, and are handed on to the stack when this call starts it.
        seconds: How long to wait at most.
        command: Starts the supervisor for the settings of its environment, and returns once that holds its lock.

    Raises:
        ConfigurationError: The settings name servers of one's own.
        StackError: It cannot be started; the message holds the end of its log.
    """
    if not settings.embedded:
        raise ConfigurationError("BATCHMILL_DATABASE_URL is set: those servers are not this stack's to start")
    layout = Layout.of(settings.home)
    if addresses := _answering(layout):
        return addresses
    layout.prepare()
    deadline = time.monotonic() + seconds
    log_start = layout.supervisor_log.stat().st_size if layout.supervisor_log.exists() else 0
    with hold(layout.start_lock, seconds):
        started = False
        while not (addresses := _answering(layout)):
            if not held(layout.supervisor_lock):
                if started:
                    raise _failure(layout, log_start, "ended while it was starting")
                _start(settings, layout, command, log_start, max(1.0, deadline - time.monotonic()))
                started = True
            elif time.monotonic() > deadline:
                raise _failure(layout, log_start, f"was not ready within {seconds:.0f} s")
            time.sleep(_PAUSE)
        return addresses


def down(settings: Settings, seconds: float = 30.0) -> bool:
    """End the stack of this home and whatever a killed supervisor left of it; False when nothing ran.

    Raises:
        StackError: The home is another user's, or is held by a process that is no supervisor.
    """
    layout = Layout.of(settings.home)
    deadline = time.monotonic() + seconds
    running = held(layout.supervisor_lock)
    if not layout.run.exists():
        return False
    if running and (supervisor := _supervisor(layout)):
        end([(supervisor, signal.SIGTERM)], max(0.0, deadline - time.monotonic()))
    with hold(layout.supervisor_lock, LOCK_SECONDS):
        orphans = end_orphans(layout)
        layout.state_file.unlink(missing_ok=True)
    return running or orphans


def status(settings: Settings) -> StackStatus:
    """What runs under this home now; it starts nothing."""
    layout = Layout.of(settings.home)
    state = _living(layout)
    children = tuple(state.children) if state else ()
    return StackStatus(
        home=layout.home,
        running=state is not None,
        ready=_answering(layout) is not None,
        worker_ready=_takes_tickets(layout, children, WORKER),
        supervisor_pid=state.supervisor.pid if state else None,
        addresses=state.addresses if state else None,
        children=children,
        compressor_ready=_takes_tickets(layout, children, COMPRESSOR),
    )


def _takes_tickets(layout: Layout, children: Sequence[ChildState], name: str) -> bool:
    return any(child.name == name and child.pid for child in children) and ready_file(layout, name).exists()


def _start(settings: Settings, layout: Layout, command: Sequence[str], log_start: int, seconds: float) -> None:
    with layout.supervisor_log.open("ab") as log:
        try:
            # It forks the supervisor and ends, so that the supervisor is nobody's child to wait for.
            code = subprocess.run(
                command,
                cwd=layout.home,
                env=environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=seconds,
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StackError(f"the supervisor cannot be started: {error}") from error
    if code != 0:
        raise _failure(layout, log_start, f"ended with code {code}")


def _living(layout: Layout) -> StackState | None:
    """What the supervisor says, as long as one lives."""
    state = read_state(layout.state_file)
    return state if state and held(layout.supervisor_lock) and state.supervisor.find() else None


def _answering(layout: Layout) -> StackAddresses | None:
    """Where the servers listen, if they do: a killed one leaves a supervisor that says so for a moment longer."""
    state = _living(layout)
    if not (state and state.ready and postgres.answers(state.database_url) and valkey.answers(state.broker_url)):
        return None
    # Asked again, since servers outlive a killed supervisor for a moment, and then end.
    again = _living(layout)
    return state.addresses if again and again.supervisor == state.supervisor else None


def _supervisor(layout: Layout) -> psutil.Process | None:
    """The lock's holder, which writes down who it is just after it took the lock."""
    deadline = time.monotonic() + LOCK_SECONDS
    while held(layout.supervisor_lock):
        state = read_state(layout.state_file)
        if state and (process := state.supervisor.find()):
            return process
        if time.monotonic() > deadline:
            raise StackError(f"{layout.supervisor_lock} is held by a process that is no supervisor: end that first")
        time.sleep(_PAUSE)
    return None


def _failure(layout: Layout, log_start: int, what: str) -> StackError:
    return StackError(f"the supervisor {what} ({layout.supervisor_log}):\n{tail(layout.supervisor_log, log_start)}")
