"""Token budgets of micro-batches, measured once for each model and device."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from storage.tables import batch_budgets


@dataclass(frozen=True)
class Budget:
    """What one forward pass should hold."""

    tokens: int
    """Longest row times rows."""
    tokens_per_second: float
    """As measured at that size; what shards are cut and times are estimated by."""


def get(connection: Connection, model_id: int, device: str) -> Budget | None:
    """What was measured for a model on a kind of device, where it was."""
    row = connection.execute(
        select(batch_budgets.c.budget_tokens, batch_budgets.c.tokens_per_second).where(
            batch_budgets.c.model_id == model_id, batch_budgets.c.device == device
        )
    ).first()
    return None if row is None else Budget(row.budget_tokens, row.tokens_per_second)


def put(connection: Connection, model_id: int, device: str, budget: Budget) -> None:
    """Keep what was measured; a later measurement replaces an earlier one."""
    values = {"budget_tokens": budget.tokens, "tokens_per_second": budget.tokens_per_second}
    connection.execute(
        insert(batch_budgets)
        .values(model_id=model_id, device=device, **values)
        .on_conflict_do_update(index_elements=["model_id", "device"], set_={**values, "measured_at": func.now()})
    )


def speed(connection: Connection, model_id: int) -> float | None:
    """Tokens a second of the fastest device on which the model was measured."""
    return connection.execute(
        select(func.max(batch_budgets.c.tokens_per_second)).where(batch_budgets.c.model_id == model_id)
    ).scalar_one_or_none()
