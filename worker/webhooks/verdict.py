"""What becomes of a delivery after an attempt: delivered, dead, or due again when the schedule says. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from contracts.states import DeliveryState
from storage.deliveries import Claim, Outcome

GONE = 410
THROTTLING = frozenset({429, 503})
"""Statuses whose `Retry-After` counts."""
JITTER = 0.2
"""By how much of it a wait is shortened or lengthened at most."""
MAX_RETRY_AFTER = 86_400.0
"""Seconds that an endpoint may ask for."""
MAX_ERROR = 500
"""Characters of an error that are kept."""


@dataclass(frozen=True)
class Answer:
    """What an attempt came to."""

    status: int | None
    """None when there was no answer."""
    error: str | None = None
    """Why it failed; None for a complete answer with a 2xx status."""
    retry_after: float | None = None
    """Seconds that the endpoint asked for."""

    @property
    def good(self) -> bool:
        """Whether the receiver has it."""
        return self.error is None


def judge(claim: Claim, answer: Answer, waits: Sequence[float], chance: float) -> Outcome:
    """How an attempt ended.

    Args:
        claim: What was tried.
        answer: What it came to.
        waits: Seconds to wait after the first failed attempt, the second, and so on; after the last, it is dead.
        chance: From 0 to 1, even: it moves the wait, so that what failed together is not tried together again.
    """
    if answer.good:
        return Outcome(claim.id, claim.token, DeliveryState.DELIVERED, answer.status, None)
    # Postgres keeps no NUL, and what a receiver sends ends up here.
    error = (answer.error or "").replace("\0", "")[:MAX_ERROR]
    if answer.status == GONE or claim.attempt > len(waits):
        return Outcome(claim.id, claim.token, DeliveryState.DEAD, answer.status, error)
    wait = waits[claim.attempt - 1] * (1 + JITTER * (2 * chance - 1))
    if answer.retry_after is not None:
        wait = max(wait, min(answer.retry_after, MAX_RETRY_AFTER))
    return Outcome(claim.id, claim.token, DeliveryState.PENDING, answer.status, error, wait)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3); None where it cannot be understood."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
