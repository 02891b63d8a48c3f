from datetime import UTC, datetime
from uuid import UUID

import pytest

from contracts.settings import Settings
from contracts.states import DeliveryState
from storage.deliveries import Claim
from worker.webhooks.verdict import JITTER, MAX_ERROR, MAX_RETRY_AFTER, Answer, judge, retry_after

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
WAITS = Settings.model_fields["webhook_retry_seconds"].default


def claim(attempt: int = 1) -> Claim:
    return Claim(
        id=UUID(int=1),
        token=UUID(int=2),
        attempt=attempt,
        endpoint_id=1,
        url="https://example.com/",
        event="job.completed",
        body={},
        secrets=(),
        claimed_at=NOW,
    )


def test_a_complete_answer_with_2xx_is_delivered() -> None:
    found = judge(claim(), Answer(204), WAITS, 0.5)
    assert (found.state, found.status, found.error) == (DeliveryState.DELIVERED, 204, None)


def test_the_schedule_runs_over_three_days_and_then_it_is_dead() -> None:
    delays = []
    for attempt in range(1, len(WAITS) + 1):
        found = judge(claim(attempt), Answer(500, "answered 500"), WAITS, 0.5)
        assert found.state is DeliveryState.PENDING
        delays.append(found.delay)
    assert delays == [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert sum(delays) > 3 * 86_400
    last = judge(claim(len(WAITS) + 1), Answer(500, "answered 500"), WAITS, 0.5)
    assert (last.state, last.status, last.error) == (DeliveryState.DEAD, 500, "answered 500")


def test_waits_are_spread() -> None:
    found = [judge(claim(2), Answer(None, "reset"), WAITS, chance).delay for chance in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([300 * (1 - JITTER), 300, 300 * (1 + JITTER)])


def test_an_endpoint_may_ask_for_later_but_not_for_sooner() -> None:
    def delay(asked: float) -> float:
        return judge(claim(2), Answer(503, "busy", asked), WAITS, 0.5).delay

    assert delay(10) == 300
    assert delay(4000) == 4000
    assert delay(1e9) == MAX_RETRY_AFTER


def test_gone_is_dead_at_once() -> None:
    assert judge(claim(), Answer(410, "gone"), WAITS, 0.5).state is DeliveryState.DEAD


def test_what_is_kept_of_an_error_fits_the_database() -> None:
    error = judge(claim(), Answer(None, "a\0b" + "x" * 10_000), WAITS, 0.5).error
    assert error is not None
    assert error.startswith("abx")
    assert len(error) == MAX_ERROR


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120),
        (" 7 ", 7),
        ("9" * 5000, 999_999_999_999),
        ("Thu, 01 Jan 2026 12:01:30 GMT", 90),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        ("Thursday, 01-Jan-26 12:00:10 GMT", 10),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("Thu, 99 Foo 2026 12:01:30 GMT", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds
