"""What every kind of source comes down to."""

from dataclasses import dataclass, field
from errno import ENAMETOOLONG
from pathlib import Path

from contracts.errors import ModelRefused


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


def existing(written: str) -> Path | None:
    """The folder or file here that is written so, `~` for a home; nothing where there is none.

    Raises:
        ModelRefused: Whether there is one may not be seen.
    """
    try:
        path = Path(written).expanduser()
        return path if written and path.exists() else None
    except RuntimeError:  # nobody has that home
        return None
    except OSError as error:
        if error.errno == ENAMETOOLONG:
            return None
        raise ModelRefused(f"{written} cannot be read: {error.strerror}") from None
