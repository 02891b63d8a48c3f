"""A device that is not looked for, with budgets that are given: to find and measure takes longer than a test has."""

from sqlalchemy import text

import worker.hardware
from storage.database import Database
from worker.hardware import Hardware

DEVICE = "suite"
"""What budgets are kept under."""


def take_it() -> None:
    """Have this process compute on it; no torch is imported for that."""
    worker.hardware.detect = lambda settings: Hardware("cpu", DEVICE, 2**33)


def give_budget(database: Database, model_id: int, tokens: int, tokens_per_second: float) -> None:
    """Say what a pass of a model holds on it, and how fast it is."""
    statement = text(
        "INSERT INTO batch_budgets (model_id, device, budget_tokens, tokens_per_second) "
        "VALUES (:model, :device, :tokens, :speed)"
    )
    with database.transaction() as connection:
        values = {"model": model_id, "device": DEVICE, "tokens": tokens, "speed": tokens_per_second}
        connection.execute(statement, values)
