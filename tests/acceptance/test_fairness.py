"""What one job leaves to others: of its own class, of a more urgent one, and of the broker."""

import time
from itertools import accumulate

import numpy as np
import pytest
from sqlalchemy import text

from producer import Client, Job
from storage.broker import Tickets
from tests.acceptance.forked import ForkedMill, add_fake
from tests.conftest import wait_until

pytestmark = pytest.mark.alone
FAST = "fake:?item_delay=0.0002"
INPUTS = 24_000
WINDOW = 16


def inputs(tag: str, count: int) -> list[str]:
    return [f"{tag} {number:06d} ".ljust(100, "x") for number in range(count)]


def test_two_equal_jobs_stay_side_by_side(forked: ForkedMill) -> None:
    with forked.client() as client:
        add_fake(client, "fast", FAST)
        jobs = [client.submit("fast", inputs(tag, INPUTS), priority="bulk") for tag in ("one", "two")]
        forked.worker()
        for job in jobs:
            job.wait(timeout=120)
        begin, end = _span(client, jobs)
        moments = [begin + (end - begin) * tenth / 10 for tenth in range(1, 10)]
        one, two = (_done_at(client, job, moments) for job in jobs)
    shares = [(a, b) for a, b in zip(one, two, strict=True)]
    assert all(abs(a - b) <= 0.2 * max(a, b) for a, b in shares), shares


def test_a_bulk_job_fills_no_broker_and_holds_up_no_line(forked: ForkedMill) -> None:
    with forked.client() as client:
        add_fake(client, "fast", FAST)
        bulk = client.submit("fast", inputs("bulk", 2 * INPUTS), priority="bulk")
        tickets = Tickets(forked.environment["BATCHMILL_BROKER_URL"])
        forked.worker()
        forked.beat()
        wait_until(lambda: bulk.refresh().counts.computed > 0, 60)
        depths, seconds = [], []
        for number in range(20):
            begin = time.monotonic()
            client.submit("fast", [f"line {number}"], priority="interactive").wait(timeout=30)
            seconds.append(time.monotonic() - begin)
            depths.append(tickets.depth("default"))
        tickets.close()
        assert not bulk.refresh().state.terminal, "the bulk job ended before the lines did"
        shards = _count(client, bulk)
        bulk.cancel()
    # Each line adds a ticket of its own, and what a worker leaves behind is topped up to the window.
    assert max(depths) <= WINDOW < shards / 4, (depths, shards)
    assert np.median(seconds) < 0.5, seconds


def _span(client: Client, jobs: list[Job]) -> tuple[float, float]:
    """When the first shard of all was claimed, and when the first job ended: seconds since the epoch."""
    starts = [job.refresh().info.started_at for job in jobs]
    ends = [job.info.finished_at for job in jobs]
    return min(start.timestamp() for start in starts if start), min(end.timestamp() for end in ends if end)


def _done_at(client: Client, job: Job, moments: list[float]) -> list[int]:
    """The inputs of a job that were dealt with by each moment."""
    statement = text("""
        SELECT extract(epoch FROM finished_at)::float8, cardinality(input_ids) FROM shards
        WHERE job_id = :id AND state = 'done' ORDER BY finished_at
    """)
    with client._database.transaction() as connection:
        rows = connection.execute(statement, {"id": job.id}).all()
    done = [0, *accumulate(row[1] for row in rows)]
    return [done[int(np.searchsorted([row[0] for row in rows], moment, side="right"))] for moment in moments]


def _count(client: Client, job: Job) -> int:
    with client._database.transaction() as connection:
        return int(
            connection.execute(text("SELECT count(*) FROM shards WHERE job_id = :id"), {"id": job.id}).scalar_one()
        )
