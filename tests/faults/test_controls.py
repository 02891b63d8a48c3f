"""Negative controls: with one safeguard taken out, the checker fails, and names the invariant that it kept.

Each scenario runs twice: with everything in place nothing is violated, or the control would prove nothing.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from storage import control, locks, retention, unused
from storage.database import Database
from storage.retention import Retention
from tests.faults import controls
from tests.faults.checker import check
from tests.faults.crash import CrashPoint
from tests.faults.driver import Diet, Driver
from tests.faults.ground import Ground
from tests.faults.receiver import FLAKY
from tests.faults.strikes import PATIENCE, Outlived
from tests.faults.submitting import Plan
from tests.faults.world import Shape, World

pytestmark = pytest.mark.alone
Scenario = Callable[[World, Driver, bool, pytest.MonkeyPatch], None]
_WAITS = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def _zombie(world: World, driver: Driver, out: bool, patch: pytest.MonkeyPatch) -> None:
    """A worker stands still until others have closed its shards, and goes on."""
    if out and not world.shape.controls:
        world.query("ALTER TABLE results DROP CONSTRAINT results_pkey")
    world.plans.append(driver.add(600))
    world.start(0)
    Outlived().strike(world)


def _late_announcement(world: World, driver: Driver, out: bool, patch: pytest.MonkeyPatch) -> None:
    """A worker dies right after it closed the last shard of a job."""
    world.plans.append(driver.add(50, callback=world.callback(FLAKY[0])))
    world.start(0)
    dying = world.spawn(crash=CrashPoint.AFTER_CLOSE, passage=1)
    assert world.wait(lambda: dying.code is not None, PATIENCE)
    world.strength = 1


def _wiped(world: World, driver: Driver, out: bool, patch: pytest.MonkeyPatch) -> None:
    """The broker loses every ticket before a worker has read one."""
    first, second = driver.add(200), driver.add(200)
    begun = time.monotonic()
    world.plans.append(first)
    world.start(1)
    assert world.wait(lambda: _ended(world, first), PATIENCE)
    driver.allowance = 2 * (time.monotonic() - begun)
    world.strength = 0
    for worker in world.workers:
        worker.send(signal.SIGTERM)
    world.plans.append(second)
    assert world.wait(lambda: not world.workers and second.number in world.acknowledged(), PATIENCE)
    world.broker.wipe()  # its tickets are out
    world.strength = 1


def _cancelled_late(world: World, driver: Driver, out: bool, patch: pytest.MonkeyPatch) -> None:
    """A job is cancelled after it has succeeded."""
    if out:
        patch.setattr(control, "cancel", controls.end_again)
    plan = driver.add(50)
    world.plans.append(plan)
    world.start(1)
    assert world.wait(lambda: _ended(world, plan), PATIENCE)
    world.observe()
    world.cancel(world.acknowledged()[plan.number])


def _purged(world: World, driver: Driver, out: bool, patch: pytest.MonkeyPatch) -> None:
    """A purge has found a result that no job refers to, when a submission of just that input comes."""
    if out:
        patch.setattr(locks, "exclude_submissions", lambda connection, patience: True)
    old, new = driver.add(50), driver.add(50, first=0)
    world.plans.append(old)
    world.start(1)
    assert world.wait(lambda: _ended(world, old), PATIENCE)
    look, looks = unused.Arrivals.look, []

    def and_then_submit(arrivals: unused.Arrivals, connection: object) -> object:
        found = look(arrivals, connection)
        looks.append(found)
        if len(looks) == 2:  # the purge is about to delete, and keeps submissions out
            client = world.submit([new])
            assert world.wait(lambda: client.code is not None or world.query(_WAITS), PATIENCE)
        return found

    patch.setattr(unused.Arrivals, "look", and_then_submit)
    driver.forget(old)
    with Database(world.database.url) as database:
        retention.purge(database, Retention(*[timedelta(milliseconds=1)] * 2))
    assert len(looks) >= 2


def _ended(world: World, plan: Plan) -> bool:
    """Whether a job was accepted, and no job is left that goes on."""
    return plan.number in world.acknowledged() and not world.unfinished()


@dataclass(frozen=True)
class Control:
    scenario: Scenario
    invariant: int
    consequences: frozenset[int] = frozenset()
    """What else cannot hold then."""
    process: str | None = None
    """What is taken out of the processes; the scenario itself does it where there is none."""


CONTROLS = {
    "fencing": Control(_zombie, 4, frozenset({2, 7}), "unfenced"),
    "events in the transaction": Control(_late_announcement, 5, process="announced_later"),
    "the unique constraint": Control(_zombie, 3, frozenset({4})),
    "the tick's top-up": Control(_wiped, 6, process="no_top_up"),
    "the guard of what has ended": Control(_cancelled_late, 2),
    "the purge's lock": Control(_purged, 2, frozenset({4})),
}


@pytest.mark.parametrize("out", [True, False], ids=["without", "with"])
@pytest.mark.parametrize(
    # The worker that sleeps does nothing with what it held when it wakes up, since lanes carry passes: to be found out.
    "name",
    [pytest.param(name, marks=pytest.mark.verify) if name == "fencing" else name for name in CONTROLS],
)
def test_the_checker_names_what_is_broken(
    folder: Path, ground: Ground, name: str, out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    safeguard = CONTROLS[name]
    taken_out = (safeguard.process,) if out and safeguard.process else ()
    shape = Shape(workers=2, lease=2.0, tick=0.4, item_delay=0.003, controls=taken_out)
    with World(folder / "world", shape, ground) as world:
        driver = Driver(world, Diet(), allowance=PATIENCE)
        world.on_turn = driver.turn
        safeguard.scenario(world, driver, out, monkeypatch)
        monkeypatch.undo()
        violations = check(driver.finish())
    broken = {violation.invariant for violation in violations}
    report = "\n".join(map(str, violations))
    if out:
        assert safeguard.invariant in broken, report
        assert broken <= {safeguard.invariant} | safeguard.consequences, report
    else:
        assert not broken, report
