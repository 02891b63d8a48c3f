"""The supervisor: starts the servers and what runs on them, starts again what ends, and ends all of it in order."""

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType

from contracts.errors import StackError
from stack.layout import Layout
from stack.locks import hold_for_life, lost
from stack.processes import Child, Program, StopAsked, end_orphans, stop_together
from stack.servers import LOCK_SECONDS, Servers
from stack.state import ChildState, Identity, StackAddresses, StackState, write_whole

log = logging.getLogger(__name__)

_TICK = 0.2
SERVERS = 2
"""The first so many of what it runs are the servers, on which the others work."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_STEADY = 60.0
"""Seconds after which a child counts as having come up for good."""


class Backoff:
    """How long to wait before the next start: longer each time, until a start lasted."""

    def __init__(self) -> None:
        self._next = _FIRST_PAUSE

    def pause(self, lived: float) -> float:
        """Seconds to wait after a run of so many seconds."""
        if lived >= _STEADY:
            self._next = _FIRST_PAUSE
        pause, self._next = self._next, min(2 * self._next, _LONGEST_PAUSE)
        return pause


class _Watch:
    """One program that is to run, whatever happens to it."""

    def __init__(self, program: Program, layout: Layout) -> None:
        self.child: Child | None = Child(program, layout)
        self._program = program
        self._layout = layout
        self._backoff = Backoff()
        self._due = 0.0
        self._restarts = 0

    @property
    def state(self) -> ChildState:
        pid = self.child.pid if self.child else None
        return ChildState(name=self._program.name, pid=pid, restarts=self._restarts, address=self._program.address)

    def tend(self) -> bool:
        """Note that it ended, or start it again once its pause is over; whether either happened."""
        if self.child is not None:
            if (code := self.child.ended) is None:
                return False
            self._program.after(self.child.pid)
            self._rest(f"ended with code {code}", time.monotonic() - self.child.born)
            return True
        if time.monotonic() < self._due:
            return False
        self._restarts += 1
        try:
            self.child = Child(self._program, self._layout)
        except (StackError, OSError) as error:
            self._rest(f"cannot be started: {error}", 0.0)
        return True

    def _rest(self, what: str, lived: float) -> None:
        self.child = None
        pause = self._backoff.pause(lived)
        self._due = time.monotonic() + pause
        log.warning("%s %s; next start in %.1f s", self._program.name, what, pause)


class Supervisor:
    """Runs one home's stack until SIGTERM or SIGINT, or until the home is removed.

    Args:
        layout: The home, prepared, in which no orphan runs.
        lock: The descriptor of the home's lock, held.
        programs: What to run on the servers, given where these listen.
        upgrade: Brings the schema at a database's address up to date.
    """

    def __init__(
        self,
        layout: Layout,
        lock: int,
        programs: Callable[[StackAddresses], Sequence[Program]],
        upgrade: Callable[[str], None],
    ) -> None:
        self._layout = layout
        self._lock = lock
        self._programs = programs
        self._upgrade = upgrade
        self._watches: list[_Watch] = []
        self._stop_asked = False

    def run(self) -> None:
        """Start everything, tend it, and end it when asked to; must be called in the main thread.

        Raises:
            StackError: The servers do not come up. Once they did, they are started again for ever.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)
        try:
            addresses = self._start()
            while not self._stop_asked:
                if self._homeless:
                    log.warning("%s was removed", self._layout.home)
                    return
                changes = [watch.tend() for watch in self._watches]
                if any(changes):
                    self._write(addresses, ready=True)
                time.sleep(_TICK)
        except StopAsked:
            log.info("asked to stop while starting")
        finally:
            self._stop()

    def _start(self) -> StackAddresses:
        both = Servers(self._layout)
        self._write(both.addresses, ready=False)
        postgres, valkey = (self._add(program) for program in both.programs)
        both.settle(postgres, valkey, lambda: self._stop_asked)
        self._upgrade(both.addresses.database_url)
        for program in self._programs(both.addresses):
            self._add(program)
        self._write(both.addresses, ready=True)
        log.info("ready: %s and %s", *both.addresses)
        return both.addresses

    def _add(self, program: Program) -> Child:
        watch = _Watch(program, self._layout)
        self._watches.append(watch)
        assert watch.child is not None
        return watch.child

    def _stop(self) -> None:
        """End what runs on the servers, all of it at once, and then the servers, the last first."""
        servers, programs = self._watches[:SERVERS], self._watches[SERVERS:]
        for group in (programs, *([watch] for watch in reversed(servers))):
            children = [watch.child for watch in group if watch.child is not None]
            if children:
                log.info("ending %s", ", ".join(child.program.name for child in children))
                stop_together(children, max(child.program.stop_seconds for child in children))
        if not self._homeless:
            self._layout.state_file.unlink(missing_ok=True)

    @property
    def _homeless(self) -> bool:
        """Whether the home is gone, or another supervisor's by now."""
        return lost(self._layout.supervisor_lock, self._lock)

    def _ask_to_stop(self, number: int, _: FrameType | None) -> None:
        self._stop_asked = True

    def _write(self, addresses: StackAddresses, *, ready: bool) -> None:
        state = StackState(
            supervisor=Identity.of(os.getpid()),
            ready=ready,
            database_url=addresses.database_url,
            broker_url=addresses.broker_url,
            children=[watch.state for watch in self._watches],
        )
        try:
            write_whole(self._layout.state_file, state)
        except OSError as error:  # a full disk, which may well be why a child ended
            log.warning("%s is out of date: %s", self._layout.state_file, error)


def supervise(
    layout: Layout,
    programs: Callable[[StackAddresses], Sequence[Program]],
    upgrade: Callable[[str], None],
    *,
    detach: bool,
) -> None:
    """Hold the home until the process ends, and run its stack until asked to stop.

    Detached, a forked child does, and the calling process returns as soon as the home is held.

    Raises:
        StackError: Another supervisor runs, or the servers do not come up.
    """
    layout.prepare()
    lock = hold_for_life(layout.supervisor_lock, LOCK_SECONDS)
    if detach and os.fork():
        return  # the child has the lock
    end_orphans(layout)
    Supervisor(layout, lock, programs, upgrade).run()
