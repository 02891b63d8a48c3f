"""A dry run: what a submission would be, with nothing written."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from contracts.errors import EmptyJob, InvalidInput
from contracts.models import ModelSpec
from contracts.params import extra_tokens
from producer.incoming import chunks, lines
from producer.reading.lines import Entry
from storage import inputs, plans
from storage.database import Database

SHOWN = 100
"""Bad items that are kept for the report; the rest is counted."""


@dataclass(frozen=True)
class Check:
    """What a dry run found."""

    items: int = 0
    """Lines that could be taken."""
    bad: int = 0
    """Lines that could not."""
    errors: list[InvalidInput] = field(default_factory=list)
    """The first of them, each with where it stands and what is wrong."""
    duplicates: int = 0
    """Lines whose input another line has as well."""
    repeated_ids: int = 0
    """Lines whose custom id another line has: such a job is refused."""
    cached: int = 0
    """Distinct inputs whose result exists already."""
    estimated_tokens: int = 0
    """Of what is left to compute, at four bytes a token; those that are generated at their most."""
    estimated_seconds: float | None = None
    """At the measured speed of the fastest worker; None when the model was measured nowhere yet."""

    @property
    def distinct(self) -> int:
        """Inputs that differ from one another."""
        return self.items - self.duplicates


def check(
    database: Database,
    model: ModelSpec,
    params: Mapping[str, Any],
    target_id: int | None,
    source: Iterable[Entry],
    max_bytes: int,
) -> Check:
    """Read everything, write nothing.

    Memory grows with the distinct inputs (by digest) and custom ids: that is how repeated ones are found.
    """
    errors: list[InvalidInput] = []
    bad = items = repeated = cached = tokens = 0
    extra = extra_tokens(model.task, params)
    seen: set[bytes] = set()
    ids: set[str] = set()

    def on_bad(error: InvalidInput) -> None:
        nonlocal bad
        bad += 1
        if len(errors) < SHOWN:
            errors.append(error)

    try:
        for chunk in chunks(lines(source, model, on_bad, max_bytes)):
            items += len(chunk)
            new = {line.digest: len(line.payload) // 4 + 2 + extra for line in chunk if line.digest not in seen}
            seen.update(new)
            for custom_id in (line.custom_id for line in chunk if line.custom_id is not None):
                repeated += custom_id in ids
                ids.add(custom_id)
            known: set[bytes] = set()
            if target_id is not None:
                with database.transaction() as connection:
                    known = inputs.cached(connection, target_id, list(new))
            cached += len(known)
            tokens += sum(size for key, size in new.items() if key not in known)
    except EmptyJob:
        if not bad:
            raise
    with database.transaction() as connection:
        fastest = plans.fastest(connection, model.id)
    return Check(
        items=items,
        bad=bad,
        errors=errors,
        duplicates=items - len(seen),
        repeated_ids=repeated,
        cached=cached,
        estimated_tokens=tokens,
        estimated_seconds=None if fastest is None else tokens / fastest.tokens_per_second,
    )
