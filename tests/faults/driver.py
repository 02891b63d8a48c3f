"""A run: jobs are fed in, faults strike one after the other, everything heals, and what is left is looked at."""

import signal
import time
from collections.abc import Iterable, Sequence
from itertools import count

from tests.faults.crash import CLIENT_POINTS, WORKER_POINTS
from tests.faults.evidence import Evidence, Timing
from tests.faults.strikes import (
    Backends,
    BrokerFreeze,
    BrokerKill,
    ClientCrash,
    Clock,
    Crash,
    DiskFull,
    Fault,
    HalfOpen,
    Junk,
    Kill,
    LostCommits,
    PostgresCrash,
    Reset,
    Terminate,
    Wipe,
    Zombie,
    job_plan,
)
from tests.faults.submitting import Plan
from tests.faults.world import World

ALLOWANCE = 20.0
"""Seconds for what the remaining work's own time does not say: processes that start, brokers that are found again."""
PLANS_PER_CLIENT = 3


class Driver:
    """Feeds a world and strikes it.

    Args:
        world: That is entered and not started.
        items: How many inputs the planned jobs hold together.
        backlog: Inputs that are to wait while faults strike.
        job_items: What a job holds.
    """

    def __init__(self, world: World, *, items: int, backlog: int, job_items: int) -> None:
        self.world = world
        self.plans: dict[int, Plan] = {}
        self._numbers = count()
        self._next_input = 0
        self._items = items
        self._backlog = backlog
        self._job_items = job_items
        self._feed_at = 0.0

    def plan(self, size: int | None = None) -> Plan:
        """One more job; now and then it holds what an earlier one holds as well."""
        number, size = next(self._numbers), size or self._job_items
        again = number % 7 == 6 and self._next_input > size
        first = self._next_input - size // 2 if again else self._next_input
        self._next_input = first + size
        plan = job_plan(self.world, number, first, size, named=number % 3 == 0)
        self.plans[number] = plan
        return plan

    def small_plan(self) -> Plan:
        """A job for a client that dies."""
        return self.plan(200)

    def feed(self) -> None:
        """Submit more when little waits; called in the world's turns."""
        world = self.world
        if time.monotonic() < self._feed_at or world.submitting:
            return
        self._feed_at = time.monotonic() + 0.3
        if world.waiting() >= self._backlog:
            return
        plans = [world.plans.popleft() for _ in range(min(PLANS_PER_CLIENT, len(world.plans)))]
        while len(plans) < PLANS_PER_CLIENT and self._next_input < self._items:
            plans.append(self.plan())
        if plans:
            world.submit(plans)

    @property
    def fed(self) -> bool:
        """Whether everything that was planned is submitted."""
        return self._next_input >= self._items and not self.world.plans and not self.world.submitting

    def run(self, faults: Sequence[Fault], *, pause: float) -> None:
        """Let every fault strike, in this order, with so many seconds between them; go on until all is fed."""
        world = self.world
        world.on_turn = self.feed
        world.start()
        for fault in faults:
            if fault.possible(world):
                fault.strike(world)
                world.rest(world.rng.uniform(0.5, 1.5) * pause)
        while not (self.fed and not world.striking):
            world.rest(0.2)

    def finish(self) -> Evidence:
        """Heal, wait until everything is terminal, end every process in order, and say what there is to look at."""
        world = self.world
        world.wait(lambda: self.fed and not world.striking, 120)
        # What dies is dead: the clock runs from the last fault on.
        last_fault = time.monotonic()
        allowed = self._allowed()
        terminal = None
        if world.wait(lambda: world.unfinished() == 0, allowed):
            terminal = time.monotonic()
        world.observe()
        world.rest(2 * world.shape.tick)  # whatever is late to change what has ended does so now
        world.on_turn = None
        world.strength = 0
        for process in world.everyone:
            if process.code is None:
                process.send(signal.SIGTERM)
        world.ending = True
        if not world.wait(lambda: all(process.code is not None for process in world.everyone), 30):
            late = [str(process.log) for process in world.everyone if process.code is None]
            raise AssertionError(f"30 s after SIGTERM these still ran: {late}")
        return self.evidence(Timing(last_fault, terminal, allowed))

    def evidence(self, timing: Timing) -> Evidence:
        """What there is to look at."""
        world = self.world
        return Evidence(
            url=world.database.url,
            ledgers=world.ledgers,
            seed=world.shape.seed,
            plans=self.plans,
            deaths=world.tally.deaths,
            lease=world.shape.lease,
            timing=timing,
        )

    def _allowed(self) -> float:
        """Two leases, a tick, the remaining work's own time on all workers, the rests of shards that died often."""
        world = self.world
        work = world.waiting() * world.shape.item_delay
        (row,) = world.query(
            "SELECT coalesce(max(extract(epoch FROM not_before - now())), 0)::float AS rest FROM shards "
            "WHERE state = 'queued' AND not_before > now()"
        )
        return float(2 * world.shape.lease + world.shape.tick + 2 * work + row.rest + ALLOWANCE)


def every_fault(driver: Driver) -> list[Fault]:
    """Each of them once."""
    return [
        Kill(),
        *(Crash(point) for point in WORKER_POINTS),
        *(ClientCrash(point, driver.small_plan) for point in CLIENT_POINTS),
        Zombie(),
        Wipe(),
        BrokerKill(),
        BrokerFreeze(),
        PostgresCrash(),
        Backends(),
        LostCommits(),
        Reset(),
        HalfOpen(),
        DiskFull(),
        Clock(),
        Terminate(),
        Junk(),
    ]


def names(faults: Iterable[Fault]) -> list[str]:
    return [fault.name for fault in faults]
