"""The faults: each strikes while a lease is held, and writes down what was held.

A record of the fault ledger has a name, the leases, and where it concerns one process only, its ordinal. `until` stands
where living processes lose leases: when they can know of it.
"""

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import psutil

from tests.faults import inputs
from tests.faults.crash import CLIENT_POINTS, CrashPoint
from tests.faults.ledger import read_journal
from tests.faults.nursery import Process
from tests.faults.submitting import Plan
from tests.faults.world import PLAIN, World

PATIENCE = 60.0
"""Seconds that a fault waits for its moment."""
ATTEMPTS = 5


class Fault(ABC):
    """Something that goes wrong."""

    name: ClassVar[str]

    @abstractmethod
    def strike(self, world: World) -> None:
        """Let it happen; what is to be undone later, is scheduled."""

    def possible(self, world: World) -> bool:
        """Whether this machine allows it."""
        return True

    def __repr__(self) -> str:
        return self.name


def _moment(world: World) -> list[str]:
    """Wait until something is leased; what."""
    held: list[str] = []

    def any_held() -> bool:
        held[:] = [str(row.id) for row in world.leased()]
        return bool(held)

    if not world.wait(any_held, PATIENCE):
        raise AssertionError("nothing was leased for a minute: the fault had nothing to strike")
    return held


def _victim(world: World, fit: Callable[[Process], bool] = lambda _: True) -> tuple[Process, list[str]]:
    """A worker that holds leases, stopped in its tracks so that it still does; and which."""
    found: list[tuple[Process, list[str]]] = []

    def stop_one() -> bool:
        workers = [worker for worker in world.workers if fit(worker) and not worker.stopped]
        for worker in world.rng.sample(workers, len(workers)):
            if not world.held_by(worker):
                continue
            worker.send(signal.SIGSTOP)
            if held := world.held_by(worker):
                found.append((worker, held))
                return True
            worker.send(signal.SIGCONT)
        return False

    if not world.wait(stop_one, PATIENCE):
        raise AssertionError("no worker held a lease for a minute: the fault had nobody to strike")
    return found[0]


class Kill(Fault):
    """SIGKILL of a worker that holds leases."""

    name = "kill"

    def strike(self, world: World) -> None:
        victim, held = _victim(world)
        world.record(fault=self.name, process=victim.ordinal, held=held)
        victim.send(signal.SIGKILL)


class Terminate(Fault):
    """SIGTERM of every worker that holds leases, one after the other, as a rollout does."""

    name = "rolling_sigterm"

    def strike(self, world: World) -> None:
        for worker in world.workers:
            held = world.held_by(worker)
            world.record(fault=self.name, process=worker.ordinal, held=held)
            worker.send(signal.SIGTERM)
            if not world.wait(lambda: worker.code is not None, 30):  # noqa: B023 - called here
                raise AssertionError(f"a worker did not leave within 30 s of SIGTERM: {worker.log}")


class Zombie(Fault):
    """SIGSTOP for a lease and a half at least, then SIGCONT: it wakes up, and its leases are gone or someone else's."""

    name = "zombie"

    def strike(self, world: World) -> None:
        victim, held = _victim(world)
        victim.stopped = True
        self.sleep(world, victim, held, time.monotonic())

    def sleep(self, world: World, victim: Process, held: list[str], begun: float) -> None:
        """Write down which worker stands still since when with what, and let it go on in time."""
        seconds = world.rng.uniform(1.5, 2.5) * world.shape.lease - (time.monotonic() - begun)

        def wake() -> None:
            victim.stopped = False
            victim.send(signal.SIGCONT)

        until = time.monotonic() + max(seconds, 0)
        world.record(fault=self.name, process=victim.ordinal, held=held, began=begun, until=until)
        world.later(seconds, wake)


class Outlived(Zombie):
    """A worker stops by itself with outputs in its hands, and sleeps until others have closed all that it held."""

    def strike(self, world: World) -> None:
        victim = world.spawn(freeze=CrashPoint.AFTER_INFERENCE, passage=1)
        if not world.wait(lambda: _stands_still(victim), PATIENCE):
            raise AssertionError(f"a worker did not come to its first output within a minute: {victim.log}")
        victim.stopped, begun, held = True, time.monotonic(), world.held_by(victim)
        world.strength = world.shape.workers
        if not world.wait(lambda: not world.open_among(held), PATIENCE):
            raise AssertionError(f"nobody took over what a worker that stands still held: {held}")
        closed = _closed_at(world, held)
        self.sleep(world, victim, held, begun)
        # It has tried to close them once more, and said that they are not its own, or did it, where nothing keeps it.
        if not world.wait(lambda: _said_lost(victim) or _closed_at(world, held) != closed, PATIENCE):
            raise AssertionError(f"a worker that woke up did nothing with what it had held: {victim.log}")


class Crash(Fault):
    """A worker that dies at an exact point."""

    def __init__(self, point: CrashPoint) -> None:
        self.name = str(point)
        self._point = point

    def strike(self, world: World) -> None:
        for _ in range(ATTEMPTS):
            worker = world.spawn(crash=self._point)
            if not world.wait(lambda: worker.code is not None, PATIENCE):  # noqa: B023 - called here
                raise AssertionError(f"a worker did not come to {self._point} within a minute: {worker.log}")
            # A killer input may have been faster.
            if any(r.get("process") == worker.ordinal for r in read_journal(world.ledgers / "faults.jsonl")):
                return
        raise AssertionError(f"no worker came to {self._point}; the last one: {worker.log}")


class ClientCrash(Fault):
    """A client that dies while it submits; it is not always that someone tries again."""

    def __init__(self, point: CrashPoint, plan: Callable[[], Plan]) -> None:
        self.name = str(point)
        self._point = point
        self._plan = plan

    def strike(self, world: World) -> None:
        _moment(world)
        for retried in (False, True):
            plan = self._plan().model_copy(update={"retried": retried, "chunk": 50})
            client = world.submit([plan], crash=self._point)
            if not world.wait(lambda: client.code is not None, PATIENCE):  # noqa: B023 - called here
                raise AssertionError(f"a client did not come to {self._point}: {client.log}")
            if client.code != -signal.SIGKILL:
                raise AssertionError(f"a client ended with code {client.code} before {self._point}: {client.log}")


class Wipe(Fault):
    """FLUSHALL."""

    name = "flushall"

    def strike(self, world: World) -> None:
        world.record(fault=self.name, held=_moment(world))
        world.broker.wipe()


class BrokerKill(Fault):
    """SIGKILL of the broker, which is started again."""

    name = "broker_kill"

    def strike(self, world: World) -> None:
        world.record(fault=self.name, held=_moment(world))
        world.broker.server.restart(signal.SIGKILL)


class BrokerFreeze(Fault):
    """SIGSTOP of the broker for two leases."""

    name = "broker_freeze"

    def strike(self, world: World) -> None:
        world.record(fault=self.name, held=_moment(world))
        world.broker.server.send(signal.SIGSTOP)
        world.later(2 * world.shape.lease, lambda: world.broker.server.send(signal.SIGCONT))


class PostgresCrash(Fault):
    """An immediate restart of Postgres: nothing is shut down in order, and it recovers from its log."""

    name = "postgres_immediate"

    def strike(self, world: World) -> None:
        held, begun = _moment(world), time.monotonic()
        world.database.server.restart(signal.SIGQUIT)
        outage = time.monotonic() - begun
        # A restart that is over before the first lease can expire costs none.
        lost = {"until": time.monotonic()} if outage > world.shape.lease / 2 else {}
        world.record(fault=self.name, held=held, began=begun, **lost)


class Backends(Fault):
    """pg_terminate_backend of every connection."""

    name = "terminate_backends"

    def strike(self, world: World) -> None:
        world.record(fault=self.name, held=_moment(world))
        world.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def _behind_the_wire(world: World) -> tuple[Process, list[str]]:
    victim, held = _victim(world, lambda worker: worker.wired)
    victim.send(signal.SIGCONT)
    return victim, held


class LostCommits(Fault):
    """Transactions whose COMMIT reaches Postgres and whose answer does not come back."""

    name = "lost_commit"
    COUNT = 5

    def strike(self, world: World) -> None:
        before = world.database_wire.lost_commits
        for lost in range(1, self.COUNT + 1):
            victim, held = _behind_the_wire(world)
            world.record(fault=self.name, process=victim.ordinal, held=held)
            world.database_wire.lose_commit()
            if not world.wait(lambda: world.database_wire.lost_commits >= before + lost, PATIENCE):  # noqa: B023
                raise AssertionError("no COMMIT went over the wire within a minute")


class Reset(Fault):
    """Every connection over the wire is cut."""

    name = "reset"

    def strike(self, world: World) -> None:
        victim, held = _behind_the_wire(world)
        world.record(fault=self.name, process=victim.ordinal, held=held)
        world.database_wire.reset()
        world.broker_wire.reset()


class HalfOpen(Fault):
    """For two leases not a byte goes over the wire, though no connection is closed."""

    name = "half_open"

    def strike(self, world: World) -> None:
        victim, held = _behind_the_wire(world)
        seconds = 2 * world.shape.lease
        world.record(fault=self.name, process=victim.ordinal, held=held, until=time.monotonic() + seconds)
        for wire in (world.database_wire, world.broker_wire):
            wire.hole()
            world.later(seconds, wire.heal)


class DiskFull(Fault):
    """No room for results, for a lease."""

    name = "disk_full"

    def possible(self, world: World) -> bool:
        return world.database.disk.works

    def strike(self, world: World) -> None:
        seconds = world.shape.lease
        world.record(fault=self.name, held=_moment(world))
        world.database.disk.fill()
        world.later(seconds, world.database.disk.empty)


class Clock(Fault):
    """One more worker, whose clock is ten minutes off, until it has served."""

    name = "clock"

    def strike(self, world: World) -> None:
        for offset in (-600.0, 600.0):
            self._serve(world, offset)

    def _serve(self, world: World, offset: float) -> None:
        for _ in range(ATTEMPTS):
            worker = world.spawn(clock=offset)
            held: list[str] = []
            if not world.wait(partial(_holds_or_died, world, worker, held), PATIENCE):
                raise AssertionError(f"a worker whose clock is off claimed nothing for a minute: {worker.log}")
            if held:
                world.record(fault=self.name, held=held)
                return
        raise AssertionError(f"no worker whose clock is off lived for long; the last one: {worker.log}")


class WebhooksKill(Fault):
    """SIGKILL of the deliverer while events are on their way."""

    name = "deliverer_kill"

    def strike(self, world: World) -> None:
        held = _moment(world)
        if not world.wait(world.undelivered, PATIENCE):
            raise AssertionError("no event was on its way for a minute")
        world.record(fault=self.name, held=held)
        world.service("webhooks").send(signal.SIGKILL)


class Junk(Fault):
    """What no program of ours would send, in the queue of tickets."""

    name = "junk"
    MESSAGES: ClassVar[list[tuple[bytes, str]]] = [
        (b"", "application/json"),
        (b"\x00\xff\xfe", "application/json"),
        (b"{not json", "application/json"),
        (b'[["default"], {}, {}]', "application/json"),
        (b"null", "application/json"),
        (b"\x80\x04N.", "application/x-python-serialize"),
        (b"what?", "text/plain"),
    ]

    def strike(self, world: World) -> None:
        world.record(fault=self.name, held=_moment(world))
        world.broker.push_junk(self.MESSAGES)


def struck(world: World) -> dict[str, int]:
    """How often each fault happened, as the ledger says: with a lease held, unless it was a client that died."""
    counts: dict[str, int] = {}
    for record in read_journal(world.ledgers / "faults.jsonl"):
        if record["held"] or record["fault"] in CLIENT_POINTS:
            counts[record["fault"]] = counts.get(record["fault"], 0) + 1
    return counts


def job_plan(world: World, number: int, first: int, count: int, **fields: Any) -> Plan:
    """A job of the world's seed."""
    model = "killing" if first >= inputs.KILLERS_FROM else PLAIN
    return Plan(number=number, seed=world.shape.seed, model=model, first=first, count=count, **fields)


def _holds_or_died(world: World, worker: Process, held: list[str]) -> bool:
    """Whether either happened; the shards are noted at once, as they may be dealt with a moment later."""
    held[:] = world.held_by(worker)
    return bool(held) or worker.code is not None


def _stands_still(worker: Process) -> bool:
    return worker.code is None and psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED


def _closed_at(world: World, held: list[str]) -> list[Any]:
    return world.query("SELECT id, finished_at FROM shards WHERE id::text = ANY(%s) ORDER BY id", held)


def _said_lost(worker: Process) -> bool:
    return "its results stay" in worker.log.read_text()
