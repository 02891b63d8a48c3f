"""What one job leaves to others: of its own class, of a more urgent one, and of the broker."""

import time
from itertools import accumulate

import numpy as np
import pytest
from sqlalchemy import text

from producer import Client, Job
from storage.broker import Tickets
from storage.sealing import SMALLEST_SHARD
from tests.acceptance.forked import ForkedMill, add_fake
from tests.conftest import wait_until

pytestmark = pytest.mark.alone
FAST, SLOW = "fake:?item_delay=0.0003", "fake:?item_delay=0.004"
INPUTS = 10_000
"""Of each of two equal jobs: six seconds of work, in more than a hundred shards."""
MANY_INPUTS = 24_000
"""Slow ones are a minute and a half of work: they outlast the lines, however slow the machine."""
WINDOW = 16
TIMES = 5
"""A line may take so many times as long beside a bulk job as alone: a pass in flight is awaited, and others run."""


def inputs(tag: str, count: int) -> list[str]:
    return [f"{tag} {number:06d} ".ljust(100, "x") for number in range(count)]


def test_two_equal_jobs_stay_side_by_side(forked: ForkedMill) -> None:
    with forked.client() as client:
        add_fake(client, "fast", FAST, tokens_per_second=SMALLEST_SHARD)  # so that shards are small
        jobs = [client.submit("fast", inputs(tag, INPUTS), priority="bulk") for tag in ("one", "two")]
        forked.worker()
        for job in jobs:
            job.wait(timeout=300)
        begin, end = _span(client, jobs)
        moments = [begin + (end - begin) * tenth / 10 for tenth in range(1, 10)]
        one, two = (_done_at(client, job, moments) for job in jobs)
    shares = [(a, b) for a, b in zip(one, two, strict=True)]
    assert all(abs(a - b) <= 0.2 * max(a, b) for a, b in shares), shares


def test_a_bulk_job_fills_no_broker_and_holds_up_no_line(forked: ForkedMill) -> None:
    with forked.client() as client:
        add_fake(client, "slow", SLOW)
        tickets = Tickets(forked.environment["BATCHMILL_BROKER_URL"])
        forked.worker()
        forked.beat()
        alone = [_seconds(client, f"alone {number}") for number in range(10)]
        bulk = client.submit("slow", inputs("bulk", MANY_INPUTS), priority="bulk")
        wait_until(lambda: bulk.refresh().counts.computed > 0, 60)
        depths, seconds = [], []
        for number in range(20):
            seconds.append(_seconds(client, f"line {number}"))
            depths.append(tickets.depth("default"))
        tickets.close()
        assert not bulk.refresh().state.terminal, "the bulk job ended before the lines did"
        shards = _count(client, bulk)
        bulk.cancel()
    # Each line adds a ticket of its own, and what a worker leaves behind is topped up to the window.
    assert max(depths) <= WINDOW < shards / 4, (depths, shards)
    assert np.median(seconds) < max(0.5, TIMES * np.median(alone)), (seconds, alone)


def _seconds(client: Client, line: str) -> float:
    """What an interactive line takes."""
    begin = time.monotonic()
    client.submit("slow", [line], priority="interactive").wait(timeout=300)
    return time.monotonic() - begin


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
