"""Profiles of Hypothesis: a short one that gives the same on every run, and `HYPOTHESIS_PROFILE=long`."""

import os
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, settings

from storage.database import Database
from tests.properties.ledger import Ledger

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "short", max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=_SLOW
)
settings.register_profile("long", max_examples=10_000, deadline=None, print_blob=True, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    with closing(Ledger(database)) as ledger:
        yield ledger
