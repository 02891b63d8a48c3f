"""Token budgets of micro-batches, measured once for each model and device."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from storage.tables import batch_budgets


@dataclass(frozen=True)
class Budget:
    """What one forward pass should hold."""

    tokens: int
    """Longest row times rows."""
    tokens_per_second: float
    """As measured at that size; what shards are cut and times are estimated by."""
    ceiling: int | None = None
    """Tokens that passes never hold more of, where memory was found to be too small for it."""
    memory_bytes: int | None = None
    """Of the loaded weights."""
    load_seconds: float | None = None
    """What loading took the last time, once the files were on the host."""

    @property
    def pass_seconds(self) -> float:
        """What a full pass takes."""
        return self.tokens / self.tokens_per_second


def get(connection: Connection, model_id: int, device: str) -> Budget | None:
    """What was measured for a model on a kind of device, where it was."""
    row = connection.execute(
        select(*_COLUMNS).where(batch_budgets.c.model_id == model_id, batch_budgets.c.device == device)
    ).first()
    return None if row is None else Budget(*row)


_COLUMNS = (
    batch_budgets.c.budget_tokens,
    batch_budgets.c.tokens_per_second,
    batch_budgets.c.ceiling_tokens,
    batch_budgets.c.memory_bytes,
    batch_budgets.c.load_seconds,
)


def put(connection: Connection, model_id: int, device: str, budget: Budget) -> Budget:
    """Keep what was measured, under the ceiling that is known; a later measurement replaces an earlier one."""
    new = insert(batch_budgets).values(
        model_id=model_id,
        device=device,
        budget_tokens=budget.tokens,
        tokens_per_second=budget.tokens_per_second,
        ceiling_tokens=budget.ceiling,
    )
    kept = new.on_conflict_do_update(
        index_elements=["model_id", "device"],
        set_={
            # Postgres' least() passes over what is null.
            "budget_tokens": func.least(new.excluded.budget_tokens, batch_budgets.c.ceiling_tokens),
            "ceiling_tokens": func.least(new.excluded.ceiling_tokens, batch_budgets.c.ceiling_tokens),
            "tokens_per_second": new.excluded.tokens_per_second,
            "measured_at": func.now(),
        },
    )
    return Budget(*connection.execute(kept.returning(*_COLUMNS)).one())


def note_load(
    connection: Connection, model_id: int, device: str, memory_bytes: int, load_seconds: float
) -> Budget | None:
    """Keep what loading took and came to; the budget with it, where one was measured."""
    row = connection.execute(
        update(batch_budgets)
        .where(batch_budgets.c.model_id == model_id, batch_budgets.c.device == device)
        .values(memory_bytes=memory_bytes, load_seconds=load_seconds)
        .returning(*_COLUMNS)
    ).first()
    return None if row is None else Budget(*row)


def lower_ceiling(connection: Connection, model_id: int, device: str, tokens: int) -> bool:
    """Remember that passes of more than so many tokens run out of memory; whether that was news."""
    ceiling = batch_budgets.c.ceiling_tokens
    lowered = connection.execute(
        update(batch_budgets)
        .where(batch_budgets.c.model_id == model_id, batch_budgets.c.device == device)
        .where(or_(ceiling.is_(None), ceiling > tokens))
        .values(ceiling_tokens=tokens, budget_tokens=func.least(batch_budgets.c.budget_tokens, tokens))
    )
    return bool(lowered.rowcount)


def fastest(connection: Connection, model_id: int) -> Budget | None:
    """What was measured on the device on which the model is fastest, where it was measured at all."""
    row = connection.execute(
        select(*_COLUMNS)
        .where(batch_budgets.c.model_id == model_id)
        .order_by(batch_budgets.c.tokens_per_second.desc())
        .limit(1)
    ).first()
    return None if row is None else Budget(*row)
