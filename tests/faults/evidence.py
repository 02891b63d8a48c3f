"""What a run left behind: the rows in Postgres, and the ledgers that were kept outside of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row

from tests.faults.ledger import Computed, read_engine, read_journal
from tests.faults.submitting import Plan


@dataclass(frozen=True)
class Timing:
    """How the run ended; seconds of the monotonic clock."""

    last_fault: float
    last_terminal: float | None
    """None when not everything became terminal in the time that was allowed."""
    allowed: float
    """Seconds that may pass between the two."""


@dataclass(frozen=True)
class Evidence:
    """Everything that the checker looks at; it takes no part in the run, and may look again at any time."""

    url: str
    ledgers: Path
    seed: int
    plans: Mapping[int, Plan]
    """By number: everything that anybody meant to submit."""
    forgotten: Sequence[Plan]
    """Jobs that were purged, with their results."""
    deaths: Sequence[tuple[int, str, int, float]]
    """Ordinal, role, exit code and time of every process that ended."""
    lease: float
    timing: Timing
    webhook_tries: int
    """Attempts after which an event is dead."""

    def rows(self, statement: str, *values: Any) -> list[Any]:
        """What Postgres says."""
        with psycopg.connect(self.url, row_factory=namedtuple_row) as connection:
            return connection.execute(statement, values).fetchall()

    @cached_property
    def acknowledged(self) -> dict[int, UUID]:
        """The job of each plan whose submission returned."""
        return {r["number"]: UUID(r["job"]) for r in self.client if r["act"] == "acknowledged"}

    @cached_property
    def client(self) -> list[dict[str, Any]]:
        """The client ledger."""
        return read_journal(self.ledgers / "client.jsonl")

    @cached_property
    def faults(self) -> list[dict[str, Any]]:
        """The fault ledger."""
        return read_journal(self.ledgers / "faults.jsonl")

    @cached_property
    def leaving(self) -> list[dict[str, Any]]:
        """When workers began to give their leases back."""
        return read_journal(self.ledgers / "leaving.jsonl")

    @cached_property
    def observed(self) -> list[dict[str, Any]]:
        """Jobs as they were first seen to have ended."""
        return read_journal(self.ledgers / "observed.jsonl")

    @cached_property
    def webhooks(self) -> list[dict[str, Any]]:
        """The webhook receiver's ledger."""
        return read_journal(self.ledgers / "webhooks.jsonl")

    @cached_property
    def computed(self) -> Computed:
        """The engine ledgers."""
        return read_engine(self.ledgers)
