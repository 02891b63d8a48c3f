"""What somebody who looks on is told while a run is carried out; this one tells nobody."""

from contracts.errors import InvalidInput
from contracts.runs import RunInfo, RunProgress
from producer.progress import Silent


class Watcher:
    """Looks on, and does nothing; who shows something does so in its place."""

    def begins(self, run: RunInfo) -> None:
        """The run is there, and held by this process."""

    def reads(self, progress: RunProgress) -> None:
        """A part of the source was read."""

    def leaves_out(self, error: InvalidInput) -> None:
        """A row was left out, as it cannot be taken."""

    def seals(self) -> None:
        """All rows were read; the job is being made of them."""

    def scores(self) -> Silent:
        """The job stands: what is to show how far it is."""
        return Silent()

    def writes(self, rows: int, total: int) -> None:
        """So many rows of all were handed to the sink."""

    def ends(self) -> None:
        """This process does no more for the run, however that came."""
