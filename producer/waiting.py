"""Waiting for jobs: polling, from 50 ms growing to 1 s, which works behind any pooler."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from contracts.errors import DatabaseUnavailable
from producer.progress import Silent

if TYPE_CHECKING:
    from producer.job import Job

FIRST_POLL, LAST_POLL, POLL_GROWTH = 0.05, 1.0, 1.05
"""In seconds. Growing so, a pause is a twentieth of what was waited: an end is heard of that soon after it."""
OUTAGE_SECONDS = 60.0
"""How long a wait outlasts a Postgres that does not answer."""


def wait_for_all(jobs: "Sequence[Job]", progress: Silent, timeout: float | None = None) -> bool:
    """Wait until each job is terminal, and show each look; whether they are all in time.

    Raises:
        JobNotFound: One was removed.
        DatabaseUnavailable: Postgres does not answer for a minute.
    """
    begin = time.monotonic()
    deadline = None if timeout is None else begin + timeout
    pause = FIRST_POLL
    going_on = list(jobs)
    with progress:
        while True:
            for job in going_on:
                progress.show(_refresh_patiently(job).info)
            going_on = [job for job in going_on if not job.state.terminal]
            if not going_on:
                return True
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            limit = LAST_POLL if deadline is None else deadline - now
            time.sleep(min(pause, limit, *(_before_end(job, now - begin) for job in going_on)))
            pause = min(pause * POLL_GROWTH, LAST_POLL)


def _refresh_patiently(job: "Job") -> "Job":
    """Read the row; a Postgres that restarts is no reason to leave a job that waits for nobody."""
    retrying = Retrying(
        retry=retry_if_exception_type(DatabaseUnavailable),
        wait=wait_exponential(multiplier=0.2, max=5),
        stop=stop_after_delay(OUTAGE_SECONDS),
        reraise=True,
    )
    return retrying(job.refresh)


def _before_end(job: "Job", elapsed: float) -> float:
    """Half of the seconds that the job will take at its pace so far: who waits hears of the end soon after it."""
    done = job.counts.distinct - job.counts.waiting
    return max(elapsed * job.counts.waiting / done / 2, FIRST_POLL) if done else LAST_POLL
