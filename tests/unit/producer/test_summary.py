from datetime import datetime, timedelta

import pytest

from contracts.jobs import JobCounts, JobStats
from contracts.states import JobState
from producer.summary import NONE, age_text, figures, job_summary
from tests.infos import BEGIN, info


def test_rates_are_of_the_time_from_the_first_claim_to_the_end() -> None:
    assert dict(job_summary(info())) == {
        "items": "1,200",
        "distinct": "1,000",
        "cached": "300",
        "computed": "690",
        "failed": "10",
        "truncated": "4",
        "micro-batches": "12",
        "mean fill": "50.0%",
        "padding waste": "10.0%",
        "time": "4.00 s",
        "items/s": "300",
        "tokens/s": "2,250",
    }


def test_a_job_that_found_every_result_is_timed_from_its_submission() -> None:
    found = info(
        counts=JobCounts(items=30, distinct=30, cached=30),
        stats=JobStats(),
        started_at=None,
        finished_at=BEGIN + timedelta(seconds=2),
    )

    assert figures(found) == {
        "mean_fill": None,
        "padding_waste": None,
        "seconds": 2.0,
        "items_per_second": 15.0,
        "tokens_per_second": None,
    }
    assert dict(job_summary(found))["tokens/s"] == NONE


@pytest.mark.parametrize("finished", [None, BEGIN + timedelta(seconds=2)])
def test_there_is_no_rate_without_a_time(finished: datetime | None) -> None:
    """A job that goes on has no end; one that ended where it began took no time that a clock can tell."""
    rows = dict(job_summary(info(state=JobState.RUNNING, finished_at=finished)))

    assert (rows["items/s"], rows["tokens/s"]) == (NONE, NONE)
    assert rows["waiting"] == "0"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d"), (1e8, "1,157 d")],
)
def test_a_time_span_in_its_largest_unit(seconds: float, shown: str) -> None:
    assert age_text(seconds) == shown
