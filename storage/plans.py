"""Compute plans: how a model is best computed on a kind of device, measured once and kept for all workers on such."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from contracts.names import Quantization
from storage.tables import batch_budgets, models


@dataclass(frozen=True)
class Rate:
    """One way of computing a model that was tried."""

    quantization: str
    """How the weights were held."""
    dtype: str
    """The arithmetic: `float32`, `bfloat16`, `float16`, or `int8` for integers."""
    lanes: int
    """Passes beside one another."""
    threads: int
    """Of a pass."""
    tokens: int
    """Of a pass, with padding."""
    tokens_per_second: float
    """Of all lanes together."""


@dataclass(frozen=True)
class Plan:
    """How a model is computed on a kind of device, and what one forward pass should hold."""

    tokens: int
    """Longest row times rows."""
    tokens_per_second: float
    """Of all lanes together, as measured at that size; what shards are cut and times are estimated by."""
    ceiling: int | None = None
    """Tokens that passes never hold more of, where memory was found to be too small for it."""
    memory_bytes: int | None = None
    """Of the loaded weights."""
    load_seconds: float | None = None
    """What loading took the last time, once the files were on the host."""
    quantization: str = Quantization.NONE
    """How the weights are held."""
    dtype: str = "float32"
    """The arithmetic."""
    lanes: int = 1
    """Passes beside one another."""
    threads: int = 1
    """Of a pass."""
    rates: Sequence[Rate] = field(default=(), compare=False)
    """All that was tried."""

    @property
    def pass_seconds(self) -> float:
        """What a full pass takes."""
        return self.tokens * self.lanes / self.tokens_per_second

    @property
    def width(self) -> str:
        """Lanes and the threads of each, for people."""
        return f"{self.lanes} × {self.threads}"


EVER = text("'-infinity'::timestamptz")
_MEASURED = batch_budgets.c.measured_at
_COLUMNS = tuple(
    batch_budgets.c[name]
    for name in (
        *("budget_tokens", "tokens_per_second", "ceiling_tokens", "memory_bytes", "load_seconds"),
        *("quantization", "dtype", "lanes", "threads", "rates"),
    )
)


def put(connection: Connection, model_id: int, device: str, plan: Plan) -> Plan:
    """Keep what was measured, under the ceiling that is known; a later measurement replaces an earlier one."""
    values = {
        "budget_tokens": plan.tokens,
        "ceiling_tokens": plan.ceiling,
        "tokens_per_second": plan.tokens_per_second,
        "quantization": str(plan.quantization),
        "dtype": plan.dtype,
        "lanes": plan.lanes,
        "threads": plan.threads,
        "rates": [asdict(rate) for rate in plan.rates],
    }
    new = insert(batch_budgets).values(model_id=model_id, device=device, **values)
    kept = new.on_conflict_do_update(
        index_elements=["model_id", "device"],
        set_={
            **{name: new.excluded[name] for name in values},
            # Postgres' least() passes over what is null.
            "budget_tokens": func.least(new.excluded.budget_tokens, batch_budgets.c.ceiling_tokens),
            "ceiling_tokens": func.least(new.excluded.ceiling_tokens, batch_budgets.c.ceiling_tokens),
            "measured_at": func.now(),
        },
    )
    return _plan(connection.execute(kept.returning(*_COLUMNS)).one())


def get(connection: Connection, model_id: int, device: str) -> Plan | None:
    """What was measured for a model on a kind of device, where it was, and nobody has asked since to measure anew."""
    query = select(*_COLUMNS).join_from(batch_budgets, models)
    query = query.where(batch_budgets.c.model_id == model_id, batch_budgets.c.device == device)
    return _found(connection.execute(query.where(func.coalesce(models.c.measure_from, EVER) <= _MEASURED)).first())


def ask(connection: Connection, model_id: int) -> datetime:
    """Have every worker of the model's pool measure it anew; what was measured from then on is an answer."""
    asked = update(models).where(models.c.id == model_id).values(measure_from=func.now())
    since: datetime = connection.execute(asked.returning(models.c.measure_from)).scalar_one()
    return since


def asked(connection: Connection, pool: str, device: str) -> list[int]:
    """Models of a pool that are to be measured anew on a kind of device."""
    measured = (
        select(batch_budgets.c.model_id)
        .where(batch_budgets.c.model_id == models.c.id, batch_budgets.c.measured_at >= models.c.measure_from)
        # A model in parts has a plan of its own, under a longer name.
        .where(batch_budgets.c.device.startswith(device, autoescape=True))
    )
    query = select(models.c.id).where(models.c.pool == pool, models.c.removed_at.is_(None))
    return list(connection.execute(query.where(models.c.measure_from.is_not(None), ~measured.exists())).scalars())


def note_load(connection: Connection, model_id: int, device: str, memory_bytes: int, load_seconds: float) -> None:
    """Keep what loading took and came to, where the model was measured on such a device."""
    connection.execute(
        update(batch_budgets)
        .where(batch_budgets.c.model_id == model_id, batch_budgets.c.device == device)
        .values(memory_bytes=memory_bytes, load_seconds=load_seconds)
    )


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


def fastest(connection: Connection, model_id: int) -> Plan | None:
    """What was measured on the device on which the model is fastest, where it was measured at all."""
    return _found(
        connection.execute(
            select(*_COLUMNS)
            .where(batch_budgets.c.model_id == model_id)
            .order_by(batch_budgets.c.tokens_per_second.desc())
            .limit(1)
        ).first()
    )


def _found(row: Row[Any] | None) -> Plan | None:
    return None if row is None else _plan(row)


def _plan(row: Row[Any]) -> Plan:
    fields = dict(row._mapping)
    return Plan(
        tokens=fields.pop("budget_tokens"),
        ceiling=fields.pop("ceiling_tokens"),
        rates=tuple(Rate(**rate) for rate in fields.pop("rates")),
        **fields,
    )
