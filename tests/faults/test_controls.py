"""Negative controls: with one safeguard taken out, the checker fails, and names the invariant that it kept.

Each scenario runs twice: with everything in place nothing is violated, or the control would prove nothing.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
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
from tests.faults.receiver import FLAKY
from tests.faults.strikes import Zombie
from tests.faults.world import Shape, World

pytestmark = pytest.mark.alone
Scenario = Callable[[World, Driver, bool, pytest.MonkeyPatch], None]


def _zombie(world: World, driver: Driver, out: bool, patch: pytest.MonkeyPatch) -> None:
    """A worker stands still until others have closed its shards, and goes on."""
    if out and not world.shape.controls:
        world.query("ALTER TABLE results DROP CONSTRAINT results_pkey")
    world.plans.append(driver.add(1500))
    world.start()
    assert world.wait(lambda: world.query("SELECT 1 FROM results LIMIT 1"), 20)  # from now on passes follow each other
    Zombie(outlived=True).strike(world)


def _late_announcement(world: World, driver: Driver, out: bool, patch: pytest.MonkeyPatch) -> None:
    """A worker dies right after it closed the last shard of a job."""
    world.plans.append(driver.add(50, callback=world.callback(FLAKY[0])))
    world.start(0)
    dying = world.spawn(crash=CrashPoint.AFTER_CLOSE, passage=1)
    assert world.wait(lambda: dying.code is not None, 20)
    world.strength = 1


def _wiped(world: World, driver: Driver, out: bool, patch: pytest.MonkeyPatch) -> None:
    """The broker loses every ticket before a worker has read one."""
    world.plans.append(driver.add(200))
    world.start(0)
    assert world.wait(world.acknowledged, 20)  # its tickets are out
    world.broker.wipe()
    world.strength = 1


def _cancelled_late(world: World, driver: Driver, out: bool, patch: pytest.MonkeyPatch) -> None:
    """A job is cancelled after it has succeeded."""
    if out:
        patch.setattr(control, "cancel", controls.end_again)
    plan = driver.add(50)
    world.plans.append(plan)
    world.start(1)
    assert world.wait(lambda: world.acknowledged() and not world.unfinished(), 20)
    world.observe()
    world.cancel(world.acknowledged()[plan.number])


def _purged(world: World, driver: Driver, out: bool, patch: pytest.MonkeyPatch) -> None:
    """A purge has found a result that no job refers to, when a submission of just that input comes."""
    if out:
        patch.setattr(locks, "exclude_submissions", lambda connection, patience: True)
    old, new = driver.add(50), driver.add(50, first=0)
    world.plans.append(old)
    world.start(1)
    assert world.wait(lambda: world.acknowledged() and not world.unfinished(), 20)
    look, looks = unused.Arrivals.look, []

    def and_then_submit(arrivals: unused.Arrivals, connection: object) -> object:
        found = look(arrivals, connection)
        looks.append(found)
        if len(looks) == 2:  # the purge is about to delete, and keeps submissions out
            client = world.submit([new])
            world.wait(lambda: client.code is not None, 4)
        return found

    patch.setattr(unused.Arrivals, "look", and_then_submit)
    driver.forget(old)
    with Database(world.database.url) as database:
        retention.purge(database, Retention(*[timedelta(milliseconds=1)] * 2))
    assert len(looks) >= 2


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


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="bm-faults-"))
    yield made / "world"
    if not os.environ.get("FAULTS_KEEP"):
        shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize("out", [True, False], ids=["without", "with"])
@pytest.mark.parametrize("name", CONTROLS)
def test_the_checker_names_what_is_broken(folder: Path, name: str, out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    safeguard = CONTROLS[name]
    taken_out = (safeguard.process,) if out and safeguard.process else ()
    shape = Shape(workers=2, lease=1.2, tick=0.4, item_delay=0.003, disk_megabytes=32, controls=taken_out)
    with World(folder, shape) as world:
        driver = Driver(world, Diet(), allowance=4.0)
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
