"""`python -m tests.faults.soak --part workers --seed 1`: the long run, in parts that fit an hour each.

A run that is interrupted, or out of time, heals, looks at what is there, and writes its report all the same.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults import report, strikes
from tests.faults.crash import CLIENT_POINTS, WORKER_POINTS
from tests.faults.driver import Diet, Driver
from tests.faults.ground import Ground
from tests.faults.strikes import (
    Backends,
    BrokerFreeze,
    BrokerKill,
    Clock,
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
)
from tests.faults.world import Shape, World

KILLERS, KILLERS_PER_JOB = 20, 2
PROGRESS = tuple(range(4, 100, 4))


class Interrupted(Exception):
    """Somebody wants the run to end."""


class Part:
    """A part of the long run: what it does, scaled.

    Args:
        world: That is entered.
        scale: 1 for the figures of the long run.
        deadline: When to stop striking, on the monotonic clock.
    """

    diet: Diet

    def __init__(self, world: World, scale: float, deadline: float) -> None:
        self.world = world
        self._scale = scale
        self._deadline = deadline
        self.driver = Driver(world, self.fed(scale))

    @classmethod
    def fed(cls, scale: float) -> Diet:
        raise NotImplementedError

    def run(self) -> None:
        """Until every quota is met and everything is fed, or the time is over."""
        world = self.world
        world.on_turn = self.driver.turn
        self.driver.faulty = True
        world.start()
        try:
            self.strike()
        finally:
            self.driver.faulty = False
        while not self.driver.fed and not self.late:
            world.rest(0.2)

    def strike(self) -> None:
        raise NotImplementedError

    @property
    def late(self) -> bool:
        return time.monotonic() > self._deadline

    def quota(self, full: int) -> int:
        """So many, at this scale."""
        return max(1, round(full * self._scale))


class Workers(Part):
    """Workers die at random and at exact points, stand still, and meet inputs that kill."""

    @classmethod
    def fed(cls, scale: float) -> Diet:
        return Diet(items=round(500_000 * scale), backlog=12_000, job_items=2000, plans_per_client=4)

    def strike(self) -> None:
        world, rng = self.world, self.world.rng
        for _ in range(self.quota(KILLERS // KILLERS_PER_JOB)):
            world.plans.append(self.driver.killer_plan(KILLERS_PER_JOB))
        quotas = {point: self.quota(200) for point in WORKER_POINTS}
        kills, zombies = self.quota(500), self.quota(100)
        while not self.late:
            struck = strikes.struck(world)
            points = [point for point, quota in quotas.items() if struck.get(point, 0) < quota]
            world.arm = (lambda: rng.choice(points)) if points else None  # noqa: B023
            if not points and struck.get(Kill.name, 0) >= kills and struck.get(Zombie.name, 0) >= zombies:
                return
            # Not so often that nobody lives to reach a point.
            if struck.get(Kill.name, 0) < kills and (not points or rng.random() < 0.5):
                Kill().strike(world)
            if struck.get(Zombie.name, 0) < zombies and sum(worker.stopped for worker in world.workers) < 2:
                Zombie().strike(world)
            world.rest(rng.uniform(0.05, 0.3))


class Servers(Part):
    """The broker and Postgres crash, freeze, forget, and are out of reach."""

    @classmethod
    def fed(cls, scale: float) -> Diet:
        return Diet(items=round(300_000 * scale), backlog=8000, job_items=2000)

    def strike(self) -> None:
        once = (Backends, BrokerFreeze, Clock, DiskFull, HalfOpen, Junk, LostCommits, Reset, Terminate, WebhooksKill)
        quotas: list[tuple[Callable[[], Fault], int]] = [(Wipe, 20), (BrokerKill, 50), (PostgresCrash, 25)]
        quotas += [(fault, 5) for fault in once]
        faults = [make() for make, full in quotas for _ in range(self.quota(full))]
        self.world.rng.shuffle(faults)
        for fault in faults:
            if self.late:
                return
            if fault.possible(self.world):
                fault.strike(self.world)
                self.world.rest(self.world.rng.uniform(0.2, 1.5))


class Webhooks(Part):
    """Many small jobs tell of their progress, and clients die while they submit."""

    EVENTS = 100_000

    @classmethod
    def fed(cls, scale: float) -> Diet:
        return Diet(
            items=round(200_000 * scale),
            backlog=3000,
            job_items=40,
            plans_per_client=40,
            clients=2,
            progress=PROGRESS,
            told=8,
        )

    def strike(self) -> None:
        world = self.world
        quotas = {point: self.quota(200) for point in CLIENT_POINTS}
        deaths = self.quota(20)
        while not self.late:
            struck = strikes.struck(world)
            points = [point for point, quota in quotas.items() if struck.get(point, 0) < quota]
            for point in points[:2]:
                plan = self.driver.plan().model_copy(
                    update={"retried": world.rng.random() < 0.5, "chunk": 15, "expires_in": None}
                )
                self.driver.plans[plan.number] = plan
                world.submit([plan], crash=point)
            if struck.get(WebhooksKill.name, 0) < deaths and world.rng.random() < 0.2:
                WebhooksKill().strike(world)
            if not points and self._events() >= self.EVENTS * self._scale:
                return
            world.rest(0.3)

    def _events(self) -> int:
        (row,) = self.world.query("SELECT count(*) AS n FROM deliveries")
        return int(row.n)


PARTS: dict[str, type[Part]] = {"workers": Workers, "servers": Servers, "webhooks": Webhooks}


@contextmanager
def _interruptible() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def soak(part: str, seed: int, scale: float, minutes: float, broker: str, home: Path) -> dict[str, Any]:
    """Run a part; what there is to report of it."""
    begun = time.monotonic()
    shape = Shape(
        seed=seed,
        workers=5 if part == "workers" else 3,
        lease=1.5,
        tick=0.5,
        item_delay=0.0005,
        budget=2048,
    )
    found: dict[str, Any] = {"part": part, "seed": seed, "scale": scale, "broker": broker, "ended": "as planned"}
    ground = Ground(home / "ground", broker, disk_megabytes=1024)
    with ground, World(home / "world", shape, ground) as world:
        running = PARTS[part](world, scale, begun + 60 * minutes)
        try:
            with _interruptible():
                try:
                    running.run()
                except Interrupted:
                    found["ended"] = "interrupted"
                except AssertionError as error:
                    found["ended"] = f"a fault could not strike: {error}"
                if running.late:
                    found["ended"] = "out of time"
                found["struck_seconds"] = round(time.monotonic() - begun)
                running.driver.starve()
                evidence = running.driver.finish()
                found |= report.judged(evidence)
        except (Interrupted, AssertionError) as error:
            found["ended"] = f"{found['ended']}; not looked at: {error!r}"
        found |= report.counted(world)
        found["deaths"] = dict(Counter(f"{role} {code}" for _, role, code, _ in world.tally.deaths))
    found["seconds"] = round(time.monotonic() - begun)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="1 for the figures of the long run")
    parser.add_argument("--minutes", type=float, default=50.0, help="stop striking after so long, for each part")
    parser.add_argument("--broker", choices=["valkey", "rabbitmq"], default="valkey")
    parser.add_argument("--output", type=Path, default=Path("soak"), help="folder of the reports")
    parser.add_argument("--home", type=Path, help="where servers keep their files; a short path")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    good = True
    for part in PARTS if options.part == "all" else [options.part]:
        home = Path(tempfile.mkdtemp(prefix="bm-soak-", dir=options.home))
        found = soak(part, options.seed, options.scale, options.minutes, options.broker, home)
        name = f"{part}-{options.broker}-{options.seed}"
        (options.output / f"{name}.json").write_text(json.dumps(found, indent=2, default=str) + "\n")
        (options.output / f"{name}.md").write_text(report.as_markdown(found))
        sys.stdout.write(report.as_markdown(found) + "\n")
        if found.get("violations") == [] and found["ended"] == "as planned":
            shutil.rmtree(home, ignore_errors=True)
        else:
            good = False
            sys.stderr.write(f"kept for a look: {home}\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
