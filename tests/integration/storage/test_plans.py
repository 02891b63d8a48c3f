from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from storage import plans
from storage.database import Database
from storage.plans import Plan
from tests.jobs import make_model, query

MEASURED = Plan(tokens=2048, tokens_per_second=9e4)


@pytest.fixture
def on_device(database: Database) -> Callable[..., Any]:
    """Calls a function of `storage.budgets` for one model and device, in a transaction of its own."""
    with database.transaction() as connection:
        model_id = make_model(connection).id

    def call(function: Callable[..., Any], *arguments: Any, device: str = "cpu") -> Any:
        with database.transaction() as connection:
            return function(connection, model_id, device, *arguments)

    return call


def test_a_budget_is_kept_by_device(on_device: Callable[..., Any]) -> None:
    assert on_device(plans.get) is None
    assert on_device(plans.put, MEASURED) == MEASURED
    assert on_device(plans.get) == MEASURED
    assert on_device(plans.get, device="cuda") is None
    later = Plan(4096, 1e5, 8192)
    assert on_device(plans.put, later) == later


def test_a_ceiling_only_ever_sinks(on_device: Callable[..., Any], database: Database) -> None:
    on_device(plans.put, MEASURED)
    on_device(plans.put, MEASURED, device="cuda")
    assert on_device(plans.lower_ceiling, 4096)
    assert on_device(plans.get) == replace(MEASURED, ceiling=4096)
    assert on_device(plans.lower_ceiling, 1024)
    assert not on_device(plans.lower_ceiling, 1024)
    assert not on_device(plans.lower_ceiling, 2048)
    assert on_device(plans.get) == Plan(1024, 9e4, 1024)
    assert on_device(plans.get, device="cuda") == MEASURED
    assert len(query(database, "SELECT FROM batch_budgets")) == 2


def test_a_later_measurement_stays_under_the_ceiling(on_device: Callable[..., Any]) -> None:
    on_device(plans.put, replace(MEASURED, ceiling=2048))
    on_device(plans.lower_ceiling, 1024)
    assert on_device(plans.put, Plan(4096, 1e5)) == Plan(1024, 1e5, 1024)
    assert on_device(plans.put, Plan(512, 8e4, 512)) == Plan(512, 8e4, 512)


def test_nothing_is_remembered_of_what_was_never_measured(on_device: Callable[..., Any]) -> None:
    assert not on_device(plans.lower_ceiling, 1024)
    assert on_device(plans.get) is None
