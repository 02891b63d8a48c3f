"""Control of a job that runs, seen from outside: real processes on a real database and a real broker."""

import pytest
from sqlalchemy import text

from contracts.errors import JobCancelled, JobExpired
from contracts.states import JobState
from producer import Client, Job
from tests.conftest import Mill, wait_until

INPUTS = [f"input {number:06d} ".ljust(100, "x") for number in range(4000)]
SLOW = "fake:?dimensions=4&item_delay=0.001"
"""Four seconds of work, in some thirty shards."""


def stored(client: Client) -> int:
    with client._database.transaction() as connection:
        return int(connection.execute(text("SELECT count(*) FROM results")).scalar_one())


def settled(client: Client) -> int:
    """What is stored once no more comes: the worker has let go of what it held."""
    counts = [-1]

    def unchanged() -> bool:
        counts.append(stored(client))
        return len(counts) > 50 and len(set(counts[-50:])) == 1  # a second

    wait_until(unchanged, 20)
    return counts[-1]


def outputs(job: Job) -> int:
    return sum(result.output is not None for result in job.results())


def test_a_cancelled_job_stops_and_what_was_computed_is_kept(mill: Mill) -> None:
    with mill.client() as client:
        worker = mill.worker()
        client.models.add("slow", SLOW)
        job = client.submit("slow", INPUTS)
        wait_until(lambda: job.refresh().counts.computed > 0, 60)
        job.cancel()
        done = job.counts.computed
        with pytest.raises(JobCancelled):
            job.wait(timeout=10)
        kept = settled(client)
        # Shards were cut short: some of their results were stored before, or with the pass in flight, and the rest
        # of the three that a worker holds beside the interactive slot was never computed.
        assert done <= kept < len(INPUTS)
        assert outputs(job) == job.refresh().counts.computed == done
        first = [result.error for result in job.results()]

        again = client.submit("slow", INPUTS).wait(timeout=60)
        assert (again.counts.cached, again.counts.computed) == (kept, len(INPUTS) - kept)
        assert outputs(again) == len(INPUTS)
        assert [result.error for result in client.job(job.id).results()] == first
        assert "Traceback" not in mill.log(worker)


def test_a_paused_job_finishes_what_is_leased_and_goes_on_when_resumed(mill: Mill) -> None:
    with mill.client() as client:
        mill.worker()
        client.models.add("slow", SLOW)
        job = client.submit("slow", INPUTS)
        wait_until(lambda: job.refresh().counts.computed > 0, 60)
        job.pause()
        kept = settled(client)
        assert job.refresh().state is JobState.PAUSED
        # No result is without its shard: what was leased is closed, and nothing more was begun.
        assert job.counts.computed == kept < len(INPUTS)
        job.resume().wait(timeout=60)
        assert job.counts.computed == len(INPUTS)


def test_a_job_expires_while_it_runs(mill: Mill) -> None:
    with mill.client() as client:
        mill.worker()
        mill.beat()
        client.models.add("slow", SLOW)
        client.submit("slow", ["warm"]).wait(timeout=60)
        job = client.submit("slow", INPUTS, expires_in=1.5)
        with pytest.raises(JobExpired):
            job.wait(timeout=30)
        assert job.info.finished_at is not None
        assert job.info.expires_at is not None
        assert (job.info.finished_at - job.info.expires_at).total_seconds() < 5  # a tick is one second here
        assert outputs(job) == job.counts.computed < len(INPUTS)
        kept = settled(client)
        retry = job.retry_failed().wait(timeout=60)
        assert retry.counts.items == len(INPUTS) - job.counts.computed
        assert retry.counts.computed == len(INPUTS) + 1 - kept
