"""What a submission asks for besides its inputs, checked before anything is stored."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from contracts.canonical import canonicalize
from contracts.errors import InvalidInput, InvalidRequest
from contracts.states import Priority

MAX_KEY_CHARACTERS = 255
MAX_METADATA_BYTES = 8192
"""Of its canonical JSON: webhooks carry it."""
LONGEST_EXPIRY = timedelta(days=3650)


def check_priority(priority: str) -> Priority:
    """The class that is meant.

    Raises:
        InvalidRequest: There is no such class.
    """
    if priority not in list(Priority):
        raise InvalidRequest(f"priority {priority!r}: choose one of {', '.join(Priority)}")
    return Priority(priority)


def check_idempotency_key(key: str | None) -> str | None:
    """The key, where there is one.

    Raises:
        InvalidInput: It is no text that Postgres can hold.
        InvalidRequest: It is empty or too long.
    """
    if key is not None:
        _canonical("idempotency_key", key)
        if type(key) is not str or not 0 < len(key) <= MAX_KEY_CHARACTERS:
            raise InvalidRequest(f"an idempotency key is a text of 1 to {MAX_KEY_CHARACTERS} characters")
    return key


def check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is kept with the job.

    Raises:
        InvalidInput: A value is no JSON.
        InvalidRequest: It is too large.
    """
    if not isinstance(metadata, Mapping | None):
        raise InvalidRequest(f"metadata: expected a mapping of names to values, got {type(metadata).__name__}")
    checked = dict(metadata or {})
    size = len(_canonical("metadata", checked))
    if size > MAX_METADATA_BYTES:
        raise InvalidRequest(
            f"metadata takes {size:,} bytes, and may take {MAX_METADATA_BYTES:,}: "
            "keep what is larger elsewhere, and give the key that finds it"
        )
    return checked


def check_expires_in(expires_in: timedelta | float | None) -> timedelta | None:
    """How long the job may take.

    Args:
        expires_in: A timedelta, or seconds.

    Raises:
        InvalidRequest: It is not above zero, or longer than ten years.
    """
    if expires_in is None:
        return None
    seconds = expires_in.total_seconds() if isinstance(expires_in, timedelta) else expires_in
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise InvalidRequest(f"expires_in {expires_in!r}: give a timedelta, or seconds")
    if not 0 < seconds <= LONGEST_EXPIRY.total_seconds():
        raise InvalidRequest(f"expires_in {expires_in!r}: give a time above zero, and at most ten years")
    return timedelta(seconds=seconds)


def check_progress_at(progress_at: Sequence[int], callback_url: str | None) -> tuple[int, ...]:
    """Percentages at which to announce progress, each once and ascending.

    Raises:
        InvalidRequest: One is not a whole number from 1 to 99, or there is nobody to hear of it.
    """
    if not isinstance(progress_at, Sequence):
        raise InvalidRequest(f"progress_at {progress_at!r}: give a list of whole percentages")
    for percent in progress_at:
        if type(percent) is not int or not 1 <= percent <= 99:
            raise InvalidRequest(f"progress_at {percent!r}: give whole percentages from 1 to 99")
    if progress_at and callback_url is None:
        raise InvalidRequest("progress_at goes with a callback_url, which hears of it")
    return tuple(sorted(set(progress_at)))


def _canonical(name: str, value: Any) -> bytes:
    try:
        return canonicalize(value)
    except InvalidInput as error:
        raise error.at(name) from None
