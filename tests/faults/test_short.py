"""Every fault at least once, each while a lease is held, on both brokers, and nothing lost."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.faults import checker, strikes
from tests.faults.driver import Diet, Driver, every_fault
from tests.faults.ground import Ground
from tests.faults.repeats import repeats
from tests.faults.world import Shape, World
from tests.rabbitmq_node import missing

pytestmark = pytest.mark.alone
BROKERS = pytest.mark.parametrize("broker", ["valkey", "rabbitmq"])
SEED = 20_260


@BROKERS
def test_nothing_is_lost(folder: Path, broker: str) -> None:
    strike(folder, broker, Shape(seed=SEED, lease=2.0, tick=0.5), items=3000, killers=1, pause=0.1)


@pytest.mark.verify
@BROKERS
def test_nothing_is_lost_of_many(folder: Path, broker: str) -> None:
    strike(folder, broker, Shape(seed=SEED), items=20_000, killers=2, pause=0.8)


def strike(folder: Path, broker: str, shape: Shape, *, items: int, killers: int, pause: float) -> None:
    """Let every fault strike, with so many seconds in between, while so many items are computed."""
    if broker == "rabbitmq" and (reason := missing()):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with Ground(folder / "ground", broker) as ground, World(folder / "world", shape, ground) as world:
        driver = Driver(world, Diet(items=items))
        faults = every_fault(driver)
        world.plans.append(driver.killer_plan(killers))
        driver.run(faults, pause=pause)
        evidence = driver.finish()
        violations = checker.check(evidence)
        assert not violations, "\n".join(map(str, violations))
        struck = strikes.struck(world)
        assert {fault.name for fault in faults if fault.possible(world)} <= struck.keys(), struck
        found = repeats(evidence, np.frombuffer(b"".join(checker.shared(evidence)), np.uint64))
        assert found.computed >= items * 0.9
