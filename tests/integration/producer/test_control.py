"""Jobs in the hands of their callers: cancelled, paused, resumed, expired, retried."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from contracts.errors import (
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    NothingToRetry,
    UnknownEndpoint,
    UnknownModel,
    WaitTimeout,
    WrongState,
)
from contracts.events import job_link
from contracts.states import JobState
from producer import Client, Job
from storage import control
from storage.broker import Tickets


@pytest.fixture(autouse=True)
def models(client: Client) -> None:
    client.models.add("vectors", "fake:?dimensions=4")
    client.models.add("labels", "fake:", task="classify")
    client.models.add("poisoned", "fake:?dimensions=4&fail=poison")
    client.models.add("nobody", "fake:?dimensions=4", pool="nobody")


def said(job: Job) -> list[tuple[Any, ...]]:
    return [
        (r.position, r.custom_id, None if r.output is None else r.output.tolist(), r.error, r.cached, r.truncated)
        for r in job.results()
    ]


def trip(client: Client, job: Job) -> None:
    """Pause the job as the breaker would; it is only taken for running."""
    with client._database.transaction() as connection:
        connection.execute(text("UPDATE jobs SET state = 'running' WHERE id = :id"), {"id": job.id})
        assert control.trip(connection, job.id, "breaker", "every input fails")


def test_cancelled_and_again(client: Client) -> None:
    job = client.submit("nobody", ["one", ("b", "two")])
    with pytest.raises(WrongState, match="or cancel it"):
        job.retry_failed()
    assert job.cancel().state is JobState.CANCELLED
    assert client.job(job.id).cancel().state is JobState.CANCELLED
    with pytest.raises(JobCancelled, match="2 of 2 inputs were not computed") as caught:
        job.wait()
    assert isinstance(caught.value, JobFailed)
    assert [(r.error.code, r.error.message) for r in job.results() if r.error] == [
        ("cancelled", "the job was cancelled before this was computed")
    ] * 2
    for refused in (job.pause, job.resume):
        with pytest.raises(WrongState, match=f"job {job.id} is cancelled"):
            refused()


def test_a_job_without_a_single_output_is_written(client: Client, tmp_path: Path) -> None:
    job = client.submit("nobody", ["never computed", "nor this"]).cancel()
    assert job.to_arrow()["output"].to_pylist() == [None, None]
    for suffix in ("parquet", "jsonl", "csv"):
        assert job.write(tmp_path / f"out.{suffix}").stat().st_size > 0
    empty = job.to_arrow()
    client.submit("vectors", ["of another model"]).wait(timeout=300)
    assert job.to_arrow() == empty


def test_what_it_says_does_not_change_when_another_job_computes_the_rest(client: Client) -> None:
    client.submit("poisoned", ["known"]).wait(timeout=300)
    inputs = ["known", *(f"late {number}" for number in range(5))]
    job = client.submit("poisoned", inputs).pause()
    if not job.state.terminal:  # a worker may have taken it before
        job.cancel()
    first, table = said(job), job.to_arrow()
    assert client.submit("poisoned", inputs).wait(timeout=300).counts.waiting == 0
    assert said(client.job(job.id)) == first
    assert client.job(job.id).to_arrow() == table


def test_paused_is_waited_for_and_resumed(client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    job = client.submit("nobody", ["waits"]).pause()
    assert job.pause().state is JobState.PAUSED
    with pytest.raises(WaitTimeout, match="is paused"):
        job.wait(timeout=0.1, progress=True)
    assert f"job {job.id} is paused: batchmill jobs resume {job.id}" in capfd.readouterr().err
    assert job.resume().state is JobState.QUEUED
    assert job.resume().state is JobState.QUEUED
    trip(client, job)
    with pytest.raises(WaitTimeout):
        job.wait(timeout=0.1, progress=True)
    assert f"job {job.id} was paused: every input fails" in capfd.readouterr().err
    assert job.refresh().info.error_code == "breaker"
    resumed = job.resume()
    assert (resumed.state, resumed.info.error_code, resumed.info.error_message) == (JobState.QUEUED, None, None)


def test_workers_hear_of_what_can_be_claimed_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tickets of a job that was paused went to waste."""
    client.models.add("elsewhere", "fake:?dimensions=4", pool="elsewhere")
    job = client.submit("elsewhere", ["woken"]).pause()
    woken: list[tuple[str, int]] = []
    monkeypatch.setattr(Tickets, "top_up", lambda _, pool, shards, window: woken.append((pool, shards)))
    job.resume()
    assert woken == [("elsewhere", 1)]
    job.resume()
    retry = job.cancel().retry_failed()
    assert woken == [("elsewhere", 1)] * 2
    job.retry_failed()
    assert retry.state is JobState.QUEUED
    assert len(woken) == 2


def test_what_is_not_done_in_time_expires(client: Client, eventually: Callable[..., None]) -> None:
    job = client.submit("nobody", ["too late"], expires_in=timedelta(milliseconds=1))
    with pytest.raises(JobExpired, match="is expired, 1 of 1 inputs"):
        job.wait(timeout=300)
    (result,) = job.results()
    assert result.error is not None
    assert (result.error.code, result.error.message) == ("expired", "the job expired before this was computed")
    paused = client.submit("nobody", ["held too long"], expires_in=2).pause()
    eventually(lambda: paused.refresh().state is JobState.EXPIRED)
    in_time = client.submit("vectors", ["in time"], expires_in=3600).wait(timeout=300)
    assert in_time.info.expires_at is not None
    assert in_time.info.queued_at is not None
    assert in_time.info.expires_at - in_time.info.queued_at == timedelta(hours=1)


def test_failed_items_are_retried_as_a_new_job(client: Client) -> None:
    inputs = [("a", "fine"), ("b", "poison 1"), ("c", "fine too"), ("d", "poison 2"), ("e", "poison 1")]
    job = client.submit(
        "poisoned",
        inputs,
        params={"precision": "float16"},
        priority="bulk",
        metadata={"night": 7},
        idempotency_key="retried",
        expires_in=3600,
    ).wait(timeout=300)
    assert job.counts.failed == 2
    retry = job.retry_failed()
    assert (retry.info.retry_of, retry.info.params, retry.info.priority) == (job.id, job.info.params, "bulk")
    assert (retry.info.metadata, retry.info.expires_at, retry.info.idempotency_key) == ({"night": 7}, None, None)
    assert job.retry_failed().id == retry.id
    assert client.job(job_link(job.id)).retry_failed().id == retry.id
    retry.wait(timeout=300)
    assert [(r.position, r.custom_id, r.error and r.error.code) for r in retry.results()] == [
        (0, "b", "engine_error"),
        (1, "d", "engine_error"),
        (2, "e", "engine_error"),
    ]
    # Its own failures are retried in turn; those of the first job are retried once.
    assert retry.retry_failed().info.retry_of == retry.id
    assert said(job)[0][2] is not None


def test_a_job_that_was_cut_short_is_retried_at_the_present_epoch(client: Client) -> None:
    model = client.models.add("renewed", "fake:?dimensions=4")
    client.submit("renewed", ["known"]).wait(timeout=300)
    with client._database.transaction() as connection:  # nobody computes it for now
        connection.execute(text("UPDATE models SET pool = 'nobody' WHERE id = :id"), {"id": model.id})
    job = client.submit("renewed", ["known", "unknown"]).cancel()
    assert [r.error is None for r in job.results()] == [True, False]
    with client._database.transaction() as connection:
        connection.execute(text("UPDATE models SET pool = 'default' WHERE id = :id"), {"id": model.id})
        connection.execute(text("UPDATE jobs SET pool = 'default' WHERE id = :id"), {"id": job.id})
    client.submit("renewed", ["unknown"]).wait(timeout=300)
    client.models.invalidate("renewed")
    retry = job.retry_failed().wait(timeout=300)
    assert (retry.counts.items, retry.counts.cached, retry.counts.computed) == (1, 0, 1)
    with pytest.raises(NothingToRetry, match="every item"):
        retry.retry_failed()


def test_a_retry_of_a_model_that_was_removed_is_refused(client: Client) -> None:
    client.models.add("leaving", "fake:?dimensions=4", pool="nobody")
    job = client.submit("leaving", ["x"]).cancel()
    client.models.remove("leaving")
    with pytest.raises(UnknownModel, match="leaving@1"):
        job.retry_failed()


def test_many_who_retry_at_once_get_one_job(client: Client) -> None:
    job = client.submit("nobody", [f"raced {number}" for number in range(100)]).cancel()
    barrier = threading.Barrier(8)

    def retry(_: int) -> Any:
        barrier.wait(10)
        return client.job(job.id).retry_failed().id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(retry, range(8)))) == 1


def test_a_callback_that_is_not_registered_is_refused_before_anything_is_stored(client: Client) -> None:
    before = len(client.jobs(limit=1000))
    with pytest.raises(UnknownEndpoint, match="batchmill webhooks add"):
        client.submit("vectors", ["x"], callback_url="https://receiver.example/hook", progress_at=[50])
    assert len(client.jobs(limit=1000)) == before


def test_a_callback_goes_with_the_job(client: Client) -> None:
    with client._database.transaction() as connection:
        connection.execute(
            text("INSERT INTO webhook_endpoints (url, secret) VALUES ('https://receiver.example/hook', '')")
        )
    job = client.submit(
        "vectors",
        ["told one", "told two"],
        callback_url="https://receiver.example/hook?job=7",
        progress_at=[75, 25],
    ).wait(timeout=300)
    assert job.info.callback_url == "https://receiver.example/hook?job=7"
    with client._database.transaction() as connection:
        rows = connection.execute(
            text("SELECT event, percent FROM deliveries WHERE job_id = :id ORDER BY event, percent"), {"id": job.id}
        )
        assert [tuple(row) for row in rows] == [("job.completed", None), ("job.progress", 25), ("job.progress", 75)]


def test_links_lead_to_jobs(client: Client) -> None:
    job = client.submit("nobody", ["linked"])
    assert client.job(job_link(job.id)).id == job.id
    for wrong in ("batchmill://jobs/", "batchmill://jobs/x", f"https://jobs/{job.id}"):
        with pytest.raises(JobNotFound, match="no job's id"):
            client.job(wrong)


def test_the_same_key_gives_the_same_job_whatever_its_time(client: Client) -> None:
    first = client.submit("nobody", ["keyed"], idempotency_key="timed", expires_in=3600)
    again = client.submit("nobody", ["keyed"], idempotency_key="timed", expires_in=7200)
    assert (again.id, again.info.expires_at) == (first.id, first.info.expires_at)


def test_who_waits_hears_of_the_end_at_once(client: Client) -> None:
    job = client.submit("nobody", ["ended from elsewhere"])
    ended: list[float] = []

    def wait() -> None:
        with pytest.raises(JobCancelled):
            client.job(job.id).wait(timeout=300)
        ended.append(time.monotonic())

    waiting = threading.Thread(target=wait)
    waiting.start()
    job.cancel()
    begin = time.monotonic()
    waiting.join(30)
    assert ended[0] - begin < 5
