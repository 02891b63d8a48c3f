"""Profiles of Hypothesis: a short one, and `HYPOTHESIS_PROFILE=long`; what fails says how to see it fail again."""

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from storage.database import Database
from tests.acceptance.forked import forked as forked
from tests.acceptance.forked import nursery as nursery
from tests.properties.ledger import Ledger

_COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
# Not derandomized: the one seed that a state machine gets by that may happen to go nowhere.
settings.register_profile("short", max_examples=100, **_COMMON)
settings.register_profile("long", max_examples=10_000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    with closing(Ledger(database)) as ledger:
        yield ledger
