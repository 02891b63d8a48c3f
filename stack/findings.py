"""What `batchmill doctor` looks at, and what it found."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from contracts.settings import Settings
from stack import embedded
from stack.layout import Layout


class Verdict(StrEnum):
    """What a check came to."""

    OK = "ok"
    SKIPPED = "skipped"
    """There is nothing to look at, and nothing wrong with that."""
    WARNING = "warning"
    """Something will not work that not everybody needs."""
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    check: str
    verdict: Verdict
    detail: str
    remedy: str = ""


class Situation:
    """What the checks look at."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.layout = Layout.of(settings.home)

    @cached_property
    def stack(self) -> embedded.StackStatus:
        """What runs under the home."""
        return embedded.status(self.settings)

    @property
    def database_url(self) -> str | None:
        """Where Postgres should answer; None while the embedded stack does not run."""
        if not self.settings.embedded:
            return self.settings.database_url
        return self.stack.addresses.database_url if self.stack.addresses else None

    @property
    def broker_url(self) -> str | None:
        """Where the broker should answer; None while the embedded stack does not run."""
        if not self.settings.embedded:
            return self.settings.broker_url
        return self.stack.addresses.broker_url if self.stack.addresses else None
