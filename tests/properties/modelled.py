"""Jobs and shards as the state machine believes them to be."""

from dataclasses import dataclass, field
from uuid import UUID

from storage.shards import Lease
from tests.properties.ledger import TERMINAL


@dataclass(eq=False)
class Shard:
    id: UUID
    job: "Job"
    input_ids: list[int]
    state: str = "queued"
    attempt: int = 0
    alone: bool = False
    loading: bool = False
    deaths: int = 0
    load_deaths: int = 0
    worker: str | None = None
    resting: bool = False
    held: Lease | None = None

    @property
    def lease(self) -> Lease | None:
        """Who holds it."""
        return self.held if self.state == "leased" else None


@dataclass(eq=False)
class Job:
    id: UUID
    target: int
    rank: int
    told: bool
    state: str = "receiving"
    began: bool = False
    inputs: list[str] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    cached: int = 0
    computed: int = 0
    errors: dict[int, str] = field(default_factory=dict)
    in_row: int = 0
    overdue: bool = False
    retried: bool = False
    retry_of: "Job | None" = None

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    @property
    def goes_on(self) -> bool:
        return self.state in ("queued", "running", "paused")

    def end(self, state: str) -> None:
        self.state = state
        for shard in self.shards:
            if shard.state in ("queued", "leased"):
                shard.state = "cancelled"
