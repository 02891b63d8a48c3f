"""What is done now and then by whichever worker's tick finds it due."""

from datetime import timedelta

from sqlalchemy import Connection, text

_TAKE = text("UPDATE chores SET due_at = now() + :every WHERE name = :name AND due_at <= now() RETURNING name")
_PLANT = text("INSERT INTO chores (name, due_at) VALUES (:name, now() + :every) ON CONFLICT (name) DO NOTHING")


def take_turn(connection: Connection, name: str, every: timedelta) -> bool:
    """Whether it is due, and the caller's to do; then it is due again after that time, whoever asks.

    A chore that was never asked for is due after that time as well.
    """
    values = {"name": name, "every": every}
    if connection.execute(_TAKE, values).first() is not None:
        return True
    connection.execute(_PLANT, values)
    return False
