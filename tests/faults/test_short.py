"""The short run: every fault at least once, each while a lease is held, on both brokers, and nothing lost."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.faults import checker, strikes
from tests.faults.driver import Diet, Driver, every_fault
from tests.faults.repeats import repeats
from tests.faults.world import Shape, World
from tests.rabbitmq_node import missing

pytestmark = pytest.mark.alone
ITEMS = 20_000


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets live below it."""
    made = Path(tempfile.mkdtemp(prefix="bm-faults-"))
    yield made / "world"
    if not os.environ.get("FAULTS_KEEP"):
        shutil.rmtree(made, ignore_errors=True)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("broker", ["valkey", "rabbitmq"])
def test_nothing_is_lost(folder: Path, broker: str, request: pytest.FixtureRequest) -> None:
    if broker == "rabbitmq" and (reason := missing()):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with World(folder, Shape(broker=broker, seed=20_260)) as world:
        driver = Driver(world, Diet(items=ITEMS))
        faults = every_fault(driver)
        world.plans.append(driver.killer_plan(2))
        driver.run(faults, pause=0.8)
        evidence = driver.finish()
        violations = checker.check(evidence)
        assert not violations, "\n".join(map(str, violations))
        struck = strikes.struck(world)
        assert {fault.name for fault in faults if fault.possible(world)} <= struck.keys(), struck
        found = repeats(evidence, np.frombuffer(b"".join(checker.shared(evidence)), np.uint64))
        assert found.computed >= ITEMS * 0.9
