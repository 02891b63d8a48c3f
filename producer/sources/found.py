"""What every kind of source comes down to."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class FoundModel:
    """A model that was found, and may be registered."""

    source: str
    """A local path made absolute, an id on the hub, or as given."""
    revision: str | None
    """The commit that a hub's revision stood for; None for everything else."""
    engine: str
    """The entry point under `batchmill.engines` that runs it."""
    memory_bytes: int
    """Estimate of what the weights take when they are loaded."""
    folder: Path | None = None
    """Where its files are; None for a model that has none."""
    files: list[str] = field(default_factory=list)
    """What is to be copied, relative to the folder; nothing else in it is ever read."""
