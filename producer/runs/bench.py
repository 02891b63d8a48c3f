"""What the phases of a run work with."""

from dataclasses import dataclass
from datetime import date, timedelta
from zoneinfo import ZoneInfo

from contracts.runs import RunInfo
from contracts.settings import Settings
from producer.publisher import Publisher
from storage import schedules
from storage.database import Database


@dataclass(frozen=True)
class Bench:
    """The servers and settings of a process that carries out runs."""

    database: Database
    publisher: Publisher
    settings: Settings

    @property
    def lease(self) -> timedelta:
        """How long a run is held without being renewed."""
        return timedelta(seconds=self.settings.lease_seconds)

    def day_of(self, run: RunInfo) -> date:
        """What `{date}` stands for: the day that it is due in its schedule's zone, or that it began on this machine."""
        if run.schedule is None or run.due_at is None:
            return run.created_at.astimezone().date()
        with self.database.transaction() as connection:
            zone = schedules.get(connection, run.schedule).timezone
        return run.due_at.astimezone(ZoneInfo(zone)).date()
