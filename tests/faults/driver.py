"""A run: jobs are fed in, faults strike one after the other, everything heals, and what is left is looked at."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from storage import oldjobs
from storage.database import Database
from tests.faults.crash import CLIENT_POINTS, WORKER_POINTS
from tests.faults.evidence import Evidence, Timing
from tests.faults.inputs import KILLER_EVERY, KILLERS_FROM
from tests.faults.receiver import DEAD, FLAKY
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
    WebhooksKill,
    Wipe,
    Zombie,
    job_plan,
)
from tests.faults.submitting import Plan
from tests.faults.world import WEBHOOK_WAITS, World

ALLOWANCE = 10.0
"""Seconds for what the remaining work's own time does not say: processes that start, brokers that are found again."""
DELIVERY_SECONDS = 60.0
"""How long the last events may take: the schedule, each attempt's time, and a deliverer's death."""
EVENTS_A_SECOND = 20.0
"""What a deliverer does at the least on a busy machine."""


@dataclass(frozen=True)
class Diet:
    """What a world is fed."""

    items: int = 0
    """Inputs that the planned jobs hold together; more are made while faults are still to strike."""
    backlog: int = 1500
    """Inputs that are to wait while faults strike."""
    job_items: int = 500
    plans_per_client: int = 3
    clients: int = 1
    """Clients that submit at the same time."""
    progress: tuple[int, ...] = (25, 50, 75)
    """At which percentages those jobs tell of progress that tell of it."""
    told: int = 1
    """How many of ten jobs do."""


class Driver:
    """Feeds a world and strikes it.

    Args:
        world: That is entered and not started.
        diet: What it is fed.
        allowance: Seconds for what is not work, at the end.
    """

    def __init__(self, world: World, diet: Diet, *, allowance: float = ALLOWANCE) -> None:
        self.world = world
        self._diet = diet
        self.allowance = allowance
        self.plans: dict[int, Plan] = {}
        self._forgotten: list[Plan] = []
        self._numbers = count()
        self._next_input = 0
        self._feed_at = 0.0
        self.faulty = False
        """Whether faults are still to strike: they need work to strike at, however much that takes."""
        self._cancelled: set[int] = set()

    def plan(self, size: int | None = None) -> Plan:
        """One more job; now and then it holds what an earlier one holds as well."""
        number, size = next(self._numbers), size or self._diet.job_items
        again = number % 7 == 6 and self._next_input > size
        first = self._next_input - size // 2 if again else self._next_input
        self._next_input = first + size
        told = number % 10 < self._diet.told
        callback = FLAKY[number % len(FLAKY)] if told or number % 10 == 8 else DEAD if number % 50 == 9 else None
        plan = job_plan(
            self.world,
            number,
            first,
            size,
            named=number % 3 == 0,
            callback=callback and self.world.callback(callback),
            progress=self._diet.progress if told else (),
            cancelled=number % 12 == 5,
            expires_in=1.5 if number % 24 == 10 else None,
        )
        self.plans[number] = plan
        return plan

    def add(self, size: int, first: int | None = None, **fields: Any) -> Plan:
        """One more job of just this kind, which is the caller's to submit."""
        number = next(self._numbers)
        plan = job_plan(self.world, number, self._next_input if first is None else first, size, **fields)
        self._next_input = plan.first + size
        self.plans[number] = plan
        return plan

    def forget(self, plan: Plan) -> None:
        """Note that a job is to be purged."""
        self._forgotten.append(self.plans.pop(plan.number))

    def killer_plan(self, killers: int) -> Plan:
        """A job with so many inputs that kill."""
        number = next(self._numbers)
        plan = job_plan(self.world, number, KILLERS_FROM + number * KILLER_EVERY * 100, KILLER_EVERY * killers)
        self.plans[number] = plan
        return plan

    def small_plan(self) -> Plan:
        """A job for a client that dies."""
        return self.plan(200)

    def turn(self) -> None:
        """Cancel what is to be cancelled, and submit more when little waits; called in the world's turns."""
        if time.monotonic() < self._feed_at:
            return
        self._feed_at = time.monotonic() + 0.3
        self._cancel()
        self._feed()

    def _cancel(self) -> None:
        for number, job in self.world.acknowledged().items():
            plan = self.plans.get(number)
            if plan and plan.cancelled and number not in self._cancelled and self.world.cancel(job):
                self._cancelled.add(number)

    def _feed(self) -> None:
        world, diet = self.world, self._diet
        while world.submitting < diet.clients and world.waiting() < diet.backlog:
            plans = [world.plans.popleft() for _ in range(min(diet.plans_per_client, len(world.plans)))]
            while len(plans) < diet.plans_per_client and (self.faulty or self._next_input < diet.items):
                plans.append(self.plan())
            if not plans:
                return
            world.submit(plans)

    def starve(self) -> None:
        """Plan no further job; those that are planned are submitted."""
        self.faulty, self._diet = False, replace(self._diet, items=0)

    @property
    def fed(self) -> bool:
        """Whether everything that was planned is submitted."""
        return self._next_input >= self._diet.items and not self.world.plans and not self.world.submitting

    def run(self, faults: Sequence[Fault], *, pause: float) -> None:
        """Let every fault strike, in this order, with so many seconds between them; go on until all is fed."""
        world = self.world
        world.on_turn = self.turn
        self.faulty = True
        world.start()
        for fault in faults:
            if fault.possible(world):
                fault.strike(world)
                world.rest(world.rng.uniform(0.5, 1.5) * pause)
        self.faulty = False
        while not (self.fed and not world.striking):
            world.rest(0.2)

    def finish(self) -> Evidence:
        """Heal, wait until everything is terminal, end every process in order, and say what there is to look at."""
        world = self.world
        world.wait(lambda: self.fed and not world.striking, 120)
        timing = self._settle()
        world.observe()
        world.wait(lambda: world.undelivered() == 0, DELIVERY_SECONDS + world.undelivered() / EVENTS_A_SECOND)
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
        # Who removes a job deletes its row first; items that a death left behind then belong to the next purge.
        with Database(world.database.url) as database:
            oldjobs.delete_orphans(database)
        return self.evidence(timing)

    def _settle(self) -> Timing:
        """Wait until everything is terminal; an input that kills is a fault as well, and the time runs anew."""
        world = self.world
        last, allowed = time.monotonic(), self._allowed()
        while world.unfinished():
            killed = max((at for _, role, code, at in world.tally.deaths if role == "worker" and code < 0), default=0.0)
            if killed > last:
                last, allowed = killed, self._allowed()
            if time.monotonic() > last + allowed:
                return Timing(last, None, allowed)
            world.rest(0.1)
        return Timing(last, time.monotonic(), allowed)

    def evidence(self, timing: Timing) -> Evidence:
        """What there is to look at."""
        world = self.world
        return Evidence(
            url=world.database.url,
            ledgers=world.ledgers,
            seed=world.shape.seed,
            plans=self.plans,
            forgotten=self._forgotten,
            deaths=world.tally.deaths,
            lease=world.shape.lease,
            timing=timing,
            webhook_tries=len(WEBHOOK_WAITS) + 1,
        )

    def _allowed(self) -> float:
        """Two leases, a tick, the remaining work's own time on all workers, the rests of shards that died often."""
        world = self.world
        work = world.waiting() * world.shape.item_delay
        (row,) = world.query(
            "SELECT coalesce(max(extract(epoch FROM not_before - now())), 0)::float AS rest FROM shards "
            "WHERE state = 'queued' AND not_before > now()"
        )
        return float(2 * world.shape.lease + world.shape.tick + 2 * work + row.rest + self.allowance)


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
        WebhooksKill(),
    ]
