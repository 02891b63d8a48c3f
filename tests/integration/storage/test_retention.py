"""What a purge removes, what it leaves, and that a submission beside it never misses what it saw."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest

from contracts.errors import DatabaseBusy, ItemFailed, JobNotFound
from storage import jobs, locks, oldjobs, pages, retention, runs, unused
from storage.database import Database
from storage.retention import Purged, Retention
from tests.jobs import (
    append,
    as_lines,
    claim,
    claimed,
    execute,
    finish,
    make_target,
    open_job,
    query,
    seal,
    submit,
)
from tests.runs import add, end, receive, run_now, spec
from tests.runs import claimed as claimed_run

DAY = timedelta(days=1)
WEEK = Retention(jobs=7 * DAY, results=30 * DAY)
NOW = Retention(jobs=timedelta(0), results=timedelta(0))


@pytest.fixture
def target_id(database: Database) -> int:
    return make_target(database)


def age_job(database: Database, job_id: UUID, days: int) -> None:
    execute(
        database,
        """
        UPDATE jobs SET created_at = created_at - :age, finished_at = finished_at - :age,
                        received_at = received_at - :age
        WHERE id = :id
        """,
        id=job_id,
        age=days * DAY,
    )


def age_facts(database: Database, days: int) -> None:
    """Results are as old as the ids of their shards say, which are made up here: of such an age, and of no shard."""
    execute(database, "UPDATE inputs SET created_at = created_at - :age", age=days * DAY)
    execute(database, "UPDATE results SET shard_id = uuidv7(-:age)", age=days * DAY)


def done(database: Database, target_id: int, payloads: str, days: int = 0) -> UUID:
    """A job that succeeded so many days ago, each character of the text an input."""
    job_id = submit(database, target_id, payloads)
    while (lease := claim(database)) is not None:
        finish(database, lease)
    age_job(database, job_id, days)
    return job_id


def counts(database: Database) -> tuple[int, ...]:
    tables = ("jobs", "items", "shards", "item_errors", "results", "inputs")
    return tuple(query(database, f"SELECT count(*) FROM {table}")[0][0] for table in tables)


def read(database: Database, job_id: UUID, target_id: int, stop: int = 100) -> pages.Page:
    with database.transaction() as connection:
        return pages.read(connection, job_id=job_id, target_id=target_id, column="embedding", start=0, stop=stop)


def test_all_of_an_old_job_goes_and_then_what_nobody_refers_to(database: Database, target_id: int) -> None:
    old = done(database, target_id, "abc", days=8)
    new = done(database, target_id, "cd", days=6)
    age_facts(database, 31)
    assert retention.preview(database, WEEK) == Purged(jobs=1, items=3, runs=0, results=2, inputs=2)
    assert retention.purge(database, WEEK) == Purged(jobs=1, items=3, runs=0, results=2, inputs=2)
    assert retention.purge(database, WEEK) == retention.preview(database, WEEK) == Purged(0, 0, 0, 0, 0)
    with pytest.raises(JobNotFound), database.transaction() as connection:
        jobs.get(connection, old)
    kept = read(database, new, target_id)
    assert kept.present.all()
    assert kept.cached.tolist() == [True, True]  # the shards are not there any more, and were another job's for `c`
    assert counts(database) == (1, 2, 1, 0, 2, 2)


def test_results_and_inputs_outlive_their_jobs_until_they_are_old_themselves(
    database: Database, target_id: int
) -> None:
    done(database, target_id, "ab", days=8)
    age_facts(database, 29)
    assert retention.purge(database, WEEK) == Purged(jobs=1, items=2, runs=0, results=0, inputs=0)
    age_facts(database, 31)
    assert submit(database, target_id, "b")  # had from the cache, and is referred to again
    assert retention.purge(database, WEEK) == Purged(jobs=0, items=0, runs=0, results=1, inputs=1)
    assert counts(database)[4:] == (1, 1)


def test_a_result_stays_with_the_target_that_its_job_computes(database: Database, target_id: int) -> None:
    other = make_target(database, "other")
    done(database, target_id, "a", days=8)
    kept = done(database, other, "a")
    age_facts(database, 31)
    assert retention.purge(database, WEEK) == Purged(jobs=1, items=1, runs=0, results=1, inputs=0)
    assert read(database, kept, other).present.all()


def test_an_input_stays_as_long_as_it_has_a_result(database: Database, target_id: int) -> None:
    done(database, target_id, "ab", days=8)
    age_facts(database, 31)
    execute(database, "UPDATE results SET shard_id = uuidv7() WHERE input_id = (SELECT min(input_id) FROM results)")
    assert retention.purge(database, WEEK) == Purged(jobs=1, items=2, runs=0, results=1, inputs=1)


@pytest.mark.parametrize("state", ["receiving", "queued", "running", "paused"])
def test_a_job_that_is_not_terminal_stays_whatever_its_age(database: Database, target_id: int, state: str) -> None:
    done(database, target_id, "ab", days=8)
    job_id = open_job(database, target_id)
    append(database, job_id, as_lines("bc"))
    if state != "receiving":
        seal(database, job_id, target_id)
        execute(database, "UPDATE jobs SET state = :state WHERE id = :id", state=state, id=job_id)
    age_job(database, job_id, 400)
    age_facts(database, 400)
    assert retention.purge(database, WEEK) == Purged(jobs=1, items=2, runs=0, results=1, inputs=1)
    assert counts(database)[:2] == (1, 2)
    assert counts(database)[4:] == (1, 2)


def test_nothing_goes_that_is_to_be_kept_for_ever(database: Database, target_id: int) -> None:
    done(database, target_id, "ab", days=10_000)
    age_facts(database, 10_000)
    before = counts(database)
    assert retention.preview(database, Retention(None, None)) == Purged(0, 0, 0, 0, 0)
    assert retention.purge(database, Retention(None, None)) == Purged(0, 0, 0, 0, 0)
    assert counts(database) == before
    assert retention.preview(database, Retention(DAY, None)) == Purged(1, 2, 0, 0, 0)
    assert retention.purge(database, Retention(DAY, None)) == Purged(1, 2, 0, 0, 0)


def test_a_job_stays_until_its_last_event_was_delivered(database: Database, target_id: int) -> None:
    job_id = done(database, target_id, "a", days=8)
    execute(database, "INSERT INTO webhook_endpoints (url, secret) VALUES ('https://example.org', '')")
    execute(
        database,
        """
        INSERT INTO deliveries (job_id, endpoint_id, url, event, body)
        SELECT :id, id, url, 'job.completed', '{}' FROM webhook_endpoints
        """,
        id=job_id,
    )
    assert retention.preview(database, WEEK).jobs == 0
    assert retention.purge(database, WEEK).jobs == 0
    execute(database, "UPDATE deliveries SET state = 'dead'")
    assert retention.purge(database, WEEK).jobs == 1
    assert query(database, "SELECT count(*) FROM deliveries") == [(0,)]


def test_a_retry_and_split_shards_forget_the_job(database: Database, target_id: int) -> None:
    job_id = submit(database, target_id, "ab")
    lease = claimed(database)
    finish(database, lease, {lease.input_ids[0]: ItemFailed("engine_error", "boom")})
    parts = "INSERT INTO shards (job_id, parent_id, ordinal, state, input_ids, estimated_tokens) VALUES"
    execute(database, f"{parts} (:job, :shard, 7, 'done', '{{}}', 0)", job=job_id, shard=lease.shard_id)
    retry = submit(database, target_id, "a")
    execute(database, "UPDATE jobs SET retry_of = :old WHERE id = :id", old=job_id, id=retry)
    age_job(database, job_id, 8)
    assert retention.purge(database, WEEK).jobs == 1
    assert query(database, "SELECT id, retry_of FROM jobs") == [(retry, None)]
    assert counts(database)[2:4] == (1, 0)


def test_a_purge_that_died_is_made_up_for(database: Database, target_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a job and its items, and in the middle of those: nobody sees what is left, and the next purge goes on."""
    job_id = done(database, target_id, "abcdefgh", days=8)
    kept = done(database, target_id, "abc")
    monkeypatch.setattr(oldjobs, "ROWS", 3)
    assert oldjobs.delete(database, 7 * DAY) == 1
    oldjobs._delete_slice(database, job_id, 3)
    assert counts(database)[:2] == (1, 8)
    with pytest.raises(JobNotFound, match="removed"):
        read(database, job_id, target_id)
    age_facts(database, 31)
    assert retention.purge(database, WEEK) == Purged(jobs=0, items=5, runs=0, results=5, inputs=5)
    assert len(read(database, kept, target_id).positions) == 3


def test_a_page_is_whole_or_says_that_the_job_is_gone(database: Database, target_id: int) -> None:
    job_id = done(database, target_id, "abcdefgh", days=8)
    stop = threading.Event()

    def reads() -> int:
        whole = 0
        while not stop.is_set():
            try:
                page = read(database, job_id, target_id)
            except JobNotFound:
                return whole
            assert len(page.positions) == 8
            assert page.present.all()
            whole += 1
        raise AssertionError("the job was never seen to go")

    with ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(reads) for _ in range(2)]
        try:
            retention.purge(database, Retention(DAY, timedelta(0)))
            assert [reader.result(20) >= 0 for reader in readers] == [True, True]
        finally:
            stop.set()


def test_two_purges_at_once_do_not_both_read_everything(database: Database, target_id: int) -> None:
    done(database, target_id, "a", days=8)
    age_facts(database, 31)
    with database.transaction() as connection:
        unused._plan(connection)
        with pytest.raises(DatabaseBusy, match="another purge"):
            retention.purge(database, WEEK)
        with pytest.raises(DatabaseBusy, match="another purge"):
            retention.preview(database, WEEK)


def test_a_client_that_hangs_in_a_chunk_holds_up_the_purge_and_not_the_others(
    database: Database, target_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unused, "PATIENCE", timedelta(milliseconds=50))
    monkeypatch.setattr(unused, "TRIES", 2)
    monkeypatch.setattr(unused, "TRY_SECONDS", 0.01)
    done(database, target_id, "a", days=8)
    age_facts(database, 31)
    with database.transaction() as hanging:
        locks.share_with_purge(hanging)
        with ThreadPoolExecutor(1) as thread:
            purging = thread.submit(retention.purge, database, WEEK)
            assert submit(database, target_id, "a")
            with pytest.raises(DatabaseBusy, match="a client may hang"):
                purging.result(20)
    # The job that came meanwhile holds the result now.
    assert retention.purge(database, WEEK) == Purged(0, 0, 0, 0, 0)


@pytest.mark.parametrize("moment", ["before the pass", "after the pass", "after the first batch"])
def test_what_arrives_during_a_purge_keeps_what_it_refers_to(
    database: Database, target_id: int, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    done(database, target_id, "abcd", days=8)
    age_facts(database, 31)
    monkeypatch.setattr(unused, "BATCH", 2)
    receiving = open_job(database, target_id)
    ((last,),) = query(database, "SELECT payload #>> '{}' FROM inputs ORDER BY id DESC LIMIT 1")
    arrived: list[str] = []

    def arrive(when: str) -> None:
        if when == moment and not arrived:
            arrived.append(when)
            append(database, receiving, as_lines(last))

    plan, delete_batch = unused._plan, unused._delete_batch

    def planning(connection: object) -> None:
        arrive("before the pass")
        plan(connection)

    def deleting(database: Database, candidates: object, start: int, *rest: object) -> int:
        arrive("after the pass" if start == 0 else "after the first batch")
        return delete_batch(database, candidates, start, *rest)

    monkeypatch.setattr(unused, "_plan", planning)
    monkeypatch.setattr(unused, "_delete_batch", deleting)
    assert retention.purge(database, WEEK) == Purged(jobs=1, items=4, runs=0, results=3, inputs=3)
    seal(database, receiving, target_id)
    page = read(database, receiving, target_id)
    assert (page.present.tolist(), page.cached.tolist()) == ([True], [True])


def submits_continuously(database: Database, target_id: int, seed: int, stop: threading.Event) -> list[UUID]:
    """Overlapping inputs, in several chunks; what is not in the cache is computed at once by whoever submits."""
    choice = random.Random(seed)
    sent = []
    while not stop.is_set():
        job_id = open_job(database, target_id)
        payloads = [f"input {choice.randrange(2000)}" for _ in range(40)]
        for start in (0, 20):
            append(database, job_id, as_lines(payloads[start : start + 20], start=start))
        seal(database, job_id, target_id)
        while (lease := claim(database)) is not None:
            finish(database, lease)
        sent.append(job_id)
    return sent


def test_no_result_vanishes_under_a_submission(
    database_url: str, target_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight clients submit what a loop of purges finds unused all the time, as everything is old enough at once.

    Without either half of the lock, or without the second look, this fails.
    """
    monkeypatch.setattr(unused, "BATCH", 20)
    with Database(database_url, pool_size=12) as database:
        stop = threading.Event()
        purged = []
        with ThreadPoolExecutor(8) as threads:
            clients = [threads.submit(submits_continuously, database, target_id, seed, stop) for seed in range(8)]
            deadline = time.monotonic() + 8
            try:
                while time.monotonic() < deadline and not any(client.done() for client in clients):
                    # Jobs older than this moment's are read by no one; the results of all others are looked at.
                    purged.append(retention.purge(database, Retention(timedelta(milliseconds=100), timedelta(0))))
                    check_every_job(database, target_id)
            finally:
                stop.set()
            sent = [job_id for client in clients for job_id in client.result(30)]
        check_every_job(database, target_id)
        assert len(sent) > 50
        assert sum(run.results for run in purged) > 50, purged
        assert sum(run.inputs for run in purged) > 50, purged
        assert query(database, "SELECT count(*) FROM item_errors") == [(0,)]


def check_every_job(database: Database, target_id: int) -> None:
    """Each item of each job that succeeded has its input and its result, in one snapshot."""
    statement = """
        SELECT jobs.id, items.position, inputs.id, results.input_id
        FROM jobs JOIN items ON items.job_id = jobs.id
        LEFT JOIN inputs ON inputs.id = items.input_id
        LEFT JOIN results ON results.input_id = items.input_id AND results.target_id = jobs.target_id
        WHERE jobs.state = 'succeeded' AND (results.input_id IS NULL OR inputs.id IS NULL)
    """
    assert query(database, statement) == []


def age_runs(database: Database, days: int) -> None:
    statement = "UPDATE runs SET created_at = created_at - :age, finished_at = finished_at - :age"
    execute(database, f"{statement}, lease_expires_at = lease_expires_at - :age", age=days * DAY)
    execute(
        database, "UPDATE jobs SET created_at = created_at - :age, finished_at = finished_at - :age", age=days * DAY
    )


def test_old_runs_go_but_those_that_the_next_is_compared_with(database: Database, target_id: int) -> None:
    for name in ("one", "two"):
        add(database, name, overlap="queue")
        for _ in range(3):
            run_now(database, name)
            end(database, target_id)
    run_now(database, "one")
    with database.transaction() as connection:
        runs.fail(connection, claimed_run(database).token, "code", "message")
    kept = {
        row.id
        for row in query(
            database,
            "SELECT DISTINCT ON (schedule_id) id FROM runs WHERE state = 'succeeded' ORDER BY schedule_id, due_at DESC",
        )
    }
    age_runs(database, 8)
    found = retention.preview(database, WEEK)
    assert (found.jobs, found.runs) == (4, 5)
    gone = retention.purge(database, WEEK)
    assert (gone.jobs, gone.runs) == (4, 5)
    left = query(database, "SELECT id, job_id FROM runs")
    assert {row.id for row in left} == kept
    assert {row.job_id for row in left} == {row.id for row in query(database, "SELECT id FROM jobs")}
    assert retention.purge(database, WEEK) == Purged(0, 0, 0, 0, 0)


def test_an_open_run_and_its_job_stay_and_a_failed_one_until_it_is_announced(
    database: Database, target_id: int
) -> None:
    add(database, overlap="queue")
    run_now(database)
    lease = claimed_run(database)
    job_id = receive(database, lease, target_id, ["a"])
    execute(database, "UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id", id=job_id)
    age_runs(database, 8)
    execute(database, "UPDATE runs SET lease_expires_at = now() + interval '1 hour'")
    assert retention.purge(database, WEEK) == Purged(0, 0, 0, 0, 0)
    with database.transaction() as connection:
        runs.fail(connection, lease.token, "code", "message")
    execute(
        database,
        """
        WITH endpoint AS (INSERT INTO webhook_endpoints (url, secret) VALUES ('https://x/', '') RETURNING id)
        INSERT INTO deliveries (run_id, endpoint_id, url, event, body)
        SELECT :run_id, id, 'https://x/', 'run.failed', '{}' FROM endpoint
        """,
        run_id=lease.run.id,
    )
    age_runs(database, 8)
    assert retention.purge(database, WEEK).runs == 0
    execute(database, "UPDATE deliveries SET state = 'delivered'")
    assert retention.purge(database, WEEK).runs == 1


def test_a_run_that_its_caller_never_came_back_for_ends(database: Database, target_id: int) -> None:
    def opened() -> runs.RunLease:
        with database.transaction() as connection:
            return runs.open_run(connection, spec(), runner="me", lease=DAY)

    lost, held = opened(), opened()
    receive(database, lost, target_id, ["a"])
    age_runs(database, 9)
    execute(database, "UPDATE runs SET lease_expires_at = now() + interval '1 h' WHERE id = :id", id=held.run.id)
    retention.purge(database, Retention(None, None))
    assert [row.state for row in query(database, "SELECT state FROM runs")] == ["reading", "reading"]
    retention.purge(database, WEEK)
    [row] = query(database, "SELECT id, error_message FROM runs WHERE state = 'cancelled'")
    assert (row.id, row.error_message) == (lost.run.id, "nobody resumed it")
    age_runs(database, 8)
    assert retention.purge(database, WEEK).runs == 1
