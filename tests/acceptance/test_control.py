"""Control of a job that runs, seen from outside: real processes on a real database and a real broker."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from contracts.errors import JobCancelled, JobExpired
from contracts.states import JobState
from producer import Client, Job
from tests.acceptance.forked import ForkedMill, add_fake
from tests.conftest import wait_until

COUNT = 1500
SLOW = "fake:?dimensions=4&item_delay=0.004"
"""Six seconds of work, in as many shards: however slow the machine, a job is not over before it is stopped."""


@pytest.fixture
def client(running: ForkedMill) -> Iterator[Client]:
    with running.client() as client:
        if not client.models.list():
            add_fake(client, "slow", SLOW)
        yield client


def inputs(tag: str) -> list[str]:
    return [f"{tag} {number:06d} ".ljust(100, "x") for number in range(COUNT)]


def stored(client: Client, job: Job) -> int:
    """Results of the inputs of the job, whoever computed them."""
    statement = "SELECT count(*) FROM items JOIN results USING (input_id) WHERE job_id = :id"
    with client._database.transaction() as connection:
        return int(connection.execute(text(statement), {"id": job.id}).scalar_one())


def settled(client: Client, job: Job) -> int:
    """What is stored once no more comes: the worker has let go of what it held."""
    counts: list[int] = []

    def unchanged() -> bool:
        counts.append(stored(client, job))
        return len(counts) > 50 and len(set(counts[-50:])) == 1  # more than a second

    wait_until(unchanged, 60)
    return counts[-1]


def outputs(job: Job) -> int:
    return sum(result.output is not None for result in job.results())


def test_a_cancelled_job_stops_and_what_was_computed_is_kept(client: Client) -> None:
    job = client.submit("slow", inputs("cancelled"))
    wait_until(lambda: job.refresh().counts.computed > 0, 60)
    done = job.cancel().counts.computed
    with pytest.raises(JobCancelled):
        job.wait(timeout=300)
    kept = settled(client, job)
    # Shards were cut short. What of them was stored is in the cache, and not the job's.
    assert done <= kept < COUNT
    assert outputs(job) == job.refresh().counts.computed == done
    first = [result.error for result in job.results()]

    again = client.submit("slow", inputs("cancelled")).wait(timeout=300)
    assert (again.counts.cached, again.counts.computed) == (kept, COUNT - kept)
    assert outputs(again) == COUNT
    assert [result.error for result in client.job(job.id).results()] == first


def test_a_paused_job_finishes_what_is_leased_and_goes_on_when_resumed(client: Client) -> None:
    job = client.submit("slow", inputs("paused"))
    wait_until(lambda: job.refresh().counts.computed > 0, 60)
    job.pause()
    kept = settled(client, job)
    assert job.refresh().state is JobState.PAUSED
    # No result is without its shard: what was leased is closed, and nothing more was begun.
    assert job.counts.computed == kept < COUNT
    assert job.resume().wait(timeout=300).counts.computed == COUNT


def test_a_job_expires_while_it_runs(client: Client) -> None:
    job = client.submit("slow", inputs("expires"), expires_in=1.5)
    with pytest.raises(JobExpired):
        job.wait(timeout=300)
    assert job.info.finished_at is not None
    assert job.info.expires_at is not None
    assert (job.info.finished_at - job.info.expires_at).total_seconds() < 30  # a tick is one second here
    assert outputs(job) == job.counts.computed < COUNT
    kept = settled(client, job)
    retry = job.retry_failed().wait(timeout=300)
    assert retry.counts.items == COUNT - job.counts.computed
    assert retry.counts.computed == COUNT - kept
