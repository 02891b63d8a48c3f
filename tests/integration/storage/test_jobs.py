import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from contracts.errors import DatabaseUnavailable, ItemFailed, JobNotFound, LeaseLost, WrongState
from contracts.jobs import JobCounts, JobInfo
from contracts.states import JobState, Priority
from storage import claims, control, jobs, oldjobs, sealing, shards
from storage.counting import ShardOutcome
from storage.database import Database
from storage.jobs import JobFilter
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
    store,
    submit,
)


@pytest.fixture
def target_id(database: Database) -> int:
    return make_target(database)


def info(database: Database, job_id: UUID) -> JobInfo:
    with database.transaction() as connection:
        return jobs.get(connection, job_id)


def cut(database: Database, job_id: UUID) -> list[list[int]]:
    """The sizes of the inputs of each shard, in the order of the claims."""
    rows = query(
        database,
        """
        SELECT ordinal, array_agg(inputs.size ORDER BY place) AS sizes, estimated_tokens
        FROM shards, unnest(input_ids) WITH ORDINALITY AS held (input_id, place)
        JOIN inputs ON inputs.id = held.input_id WHERE job_id = :job_id
        GROUP BY shards.id ORDER BY ordinal
        """,
        job_id=job_id,
    )
    assert [row.ordinal for row in rows] == list(range(1, len(rows) + 1))
    assert [row.estimated_tokens for row in rows] == [sum(size // 4 + 2 for size in row.sizes) for row in rows]
    return [row.sizes for row in rows]


def texts(*sizes: int) -> list[str]:
    """Distinct texts whose canonical JSON takes so many bytes."""
    return [f"{i:04d}".ljust(size - 2, "x") for i, size in enumerate(sizes)]


def test_lines_that_the_server_lost_are_missed_by_the_next_chunk_and_by_the_seal(
    database: Database, target_id: int
) -> None:
    job_id = open_job(database, target_id)
    append(database, job_id, as_lines("ab"))
    with database.transaction() as connection:
        jobs.check_received(connection, job_id, 2)
    for missed in (jobs.check_received, lambda *which: jobs.count_received(*which[:2], 1, before=which[2])):
        with pytest.raises(DatabaseUnavailable, match="2 of 3 lines are left"), database.transaction() as connection:
            missed(connection, job_id, 3)
    assert info(database, job_id).counts.items == 2


def test_a_job_is_opened_filled_and_sealed(database: Database, target_id: int) -> None:
    with database.transaction() as connection:
        job_id = jobs.open_job(
            connection, target_id=target_id, pool="default", priority=Priority.BULK, metadata={"night": [7, None]}
        )
    opened = info(database, job_id)
    assert (opened.state, opened.counts, opened.queued_at) == (JobState.RECEIVING, JobCounts(), None)
    assert claim(database) is None
    append(database, job_id, as_lines("ab"))
    append(database, job_id, as_lines("bca", start=2))
    assert seal(database, job_id, target_id) == 1
    sealed = info(database, job_id)
    assert (sealed.state, sealed.priority, sealed.metadata) == (JobState.QUEUED, Priority.BULK, {"night": [7, None]})
    assert sealed.model == "model@1"
    assert sealed.params == {"precision": "float32", "truncate": True}
    assert sealed.counts == JobCounts(items=5, distinct=3)
    assert sealed.queued_at is not None
    assert sealed.finished_at is None


def test_what_exists_is_counted_and_not_computed_again(database: Database, target_id: int) -> None:
    first = submit(database, target_id, "abcd")
    lease = claimed(database)
    assert finish(database, lease, {lease.input_ids[3]: ItemFailed("bad", "")}, truncated=lease.input_ids[:1])
    # Of a, b and c there are results, of a it was cut; d failed, and e is new.
    job_id = submit(database, target_id, "edcbaaaa")
    assert info(database, job_id).counts == JobCounts(items=8, distinct=5, cached=3, truncated=1)
    [waiting] = [row.input_ids for row in query(database, "SELECT input_ids FROM shards WHERE job_id = :id", id=job_id)]
    assert len(waiting) == 2
    assert set(waiting) & set(lease.input_ids) == {lease.input_ids[3]}
    # Another target shares inputs, but no result.
    other = submit(database, make_target(database, "other"), "abcd")
    assert info(database, other).counts == JobCounts(items=4, distinct=4)
    assert info(database, first).counts == JobCounts(items=4, distinct=4, computed=3, failed=1, truncated=1)


def test_a_job_whose_results_all_exist_succeeds_at_once(database: Database, target_id: int) -> None:
    submit(database, target_id, "ab")
    finish(database, claimed(database))
    job_id = submit(database, target_id, "bab")
    done = info(database, job_id)
    assert (done.state, done.counts) == (JobState.SUCCEEDED, JobCounts(items=3, distinct=2, cached=2))
    assert done.finished_at is not None
    assert claim(database) is None


def test_shards_are_cut_by_tokens_longest_first(database: Database, target_id: int) -> None:
    # A text of 38 bytes counts as 11 tokens.
    even = submit(database, target_id, texts(*[38] * 7), tokens=22)
    assert cut(database, even) == [[38, 38], [38, 38], [38, 38], [38]]
    sizes = [i * i % 397 + 10 for i in range(300)] + [40_000]
    uneven = submit(database, make_target(database, "other"), texts(*sizes), tokens=500)
    held = cut(database, uneven)
    assert [size for shard in held for size in shard] == sorted(sizes, reverse=True)
    assert held[0] == [40_000]
    # A shard ends with the input that fills it.
    assert all(sum(size // 4 + 2 for size in shard[:-1]) < 500 for shard in held)
    assert len(held) <= 2 + sum(size // 4 + 2 for size in sizes[:-1]) // 500


@pytest.mark.parametrize(("per_shard", "tokens"), [(3, 1000), (7, 16_384), (333, 10**6), (3, 10**9), (1, 1024)])
def test_shards_are_cut_by_inputs(database: Database, target_id: int, per_shard: int, tokens: int) -> None:
    job_id = submit(database, target_id, texts(*[18] * 700), tokens=tokens, per_shard=per_shard)
    sizes = [len(shard) for shard in cut(database, job_id)]
    assert sum(sizes) == 700
    assert max(sizes) == per_shard
    assert len(sizes) == -(-700 // per_shard)


def test_a_job_is_cut_so_that_workers_can_share_it(database: Database, target_id: int) -> None:
    # 700 texts of 202 tokens: one shard would hold them all.
    shared = cut(database, submit(database, target_id, texts(*[800] * 700)))
    assert sealing.FEWEST_SHARDS <= len(shared) <= sealing.FEWEST_SHARDS + 2
    small = cut(database, submit(database, make_target(database, "other"), texts(*[800] * 20)))
    assert [sum(size // 4 + 2 for size in shard) for shard in small[:-1]] == [11 * 202]


def test_every_distinct_input_is_in_one_shard(database: Database, target_id: int) -> None:
    payloads = [f"{i % 1700} {'x' * (i * i % 997)}" for i in range(4000)]
    job_id = submit(database, target_id, payloads, tokens=3000, per_shard=40)
    held = [i for row in query(database, "SELECT input_ids FROM shards") for i in row.input_ids]
    expected = query(database, "SELECT DISTINCT input_id AS id FROM items")
    assert sorted(held) == sorted(row.id for row in expected)
    counts = info(database, job_id).counts
    assert (counts.items, counts.distinct) == (4000, len(set(payloads)))
    sizes = cut(database, job_id)
    assert [size for shard in sizes for size in shard] == sorted((len(p) + 2 for p in set(payloads)), reverse=True)
    [(open_shards,)] = query(database, "SELECT open_shards FROM jobs")
    assert open_shards == len(sizes)


def test_equal_jobs_meet_in_the_middle(database: Database, target_id: int) -> None:
    longest = [[218], [118], [58], [18]]
    values = texts(58, 118, 18, 218)
    assert cut(database, submit(database, target_id, values, per_shard=1)) == longest
    assert cut(database, submit(database, target_id, values, per_shard=1)) == longest[::-1]
    # Any order for a third; jobs of other targets do not count, and neither do those that ended.
    assert sorted(cut(database, submit(database, target_id, values, per_shard=1))) == longest[::-1]
    other = make_target(database, "other")
    assert cut(database, submit(database, other, values, per_shard=1)) == longest
    execute(database, "UPDATE jobs SET state = 'succeeded' WHERE target_id = :id", id=other)
    assert cut(database, submit(database, other, values, per_shard=1)) == longest


def test_only_a_job_that_receives_is_sealed_or_appended_to(database: Database, target_id: int) -> None:
    job_id = submit(database, target_id, "ab")
    before = query(database, "SELECT * FROM jobs, shards, items")
    for call in (
        lambda: seal(database, job_id, target_id),
        lambda: append(database, job_id, as_lines("cd", start=2)),
        lambda: append(database, uuid4(), as_lines("cd")),
        lambda: seal(database, uuid4(), target_id),
    ):
        with pytest.raises(WrongState, match="submit again"):
            call()
    assert query(database, "SELECT * FROM jobs, shards, items") == before
    with pytest.raises(JobNotFound):
        info(database, uuid4())


def test_a_job_that_is_removed_while_it_is_sealed_says_so(database: Database, target_id: int) -> None:
    job_id = open_job(database, target_id)
    append(database, job_id, as_lines("ab"))
    waiting = threading.Event()

    def late_seal() -> int:
        waiting.set()
        return seal(database, job_id, target_id)

    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as connection:
            assert jobs.discard(connection, job_id)
            sealing = threads.submit(late_seal)
            waiting.wait(10)
            # Until it waits for this transaction's lock on the job, or has ended without it.
            while not sealing.done():
                blocked = query(database, "SELECT 1 FROM pg_locks WHERE NOT granted")
                if blocked:
                    break
        with pytest.raises(WrongState):
            sealing.result(10)
    assert query(database, "SELECT job_id FROM shards") == []


def test_only_a_job_that_receives_is_discarded(database: Database, target_id: int) -> None:
    sealed, kept, discarded = (
        submit(database, target_id, "ab"),
        open_job(database, target_id),
        open_job(database, target_id),
    )
    for job_id in (kept, discarded):
        append(database, job_id, as_lines("xy"))
    with database.transaction() as connection:
        assert jobs.discard(connection, discarded)
        assert not jobs.discard(connection, discarded)
        assert not jobs.discard(connection, sealed)
    assert oldjobs.delete_items(database, discarded) == 2
    left = {tuple(row) for row in query(database, "SELECT job_id, count(*) FROM items GROUP BY 1")}
    assert left == {(sealed, 2), (kept, 2)}
    assert {row.id for row in query(database, "SELECT id FROM jobs")} == {sealed, kept}


def test_what_was_abandoned_is_discarded_by_the_age_of_its_last_chunk(database: Database, target_id: int) -> None:
    dead, slow, young = (open_job(database, target_id) for _ in range(3))
    sealed = submit(database, target_id, "z")
    for job_id in (dead, slow, young):
        append(database, job_id, as_lines("ab"))
    execute(
        database,
        "UPDATE jobs SET created_at = now() - interval '2 hours', received_at = now() - interval '2 hours' "
        "WHERE id <> :young",
        young=young,
    )
    append(database, slow, as_lines("c", start=2))
    with database.transaction() as connection:
        assert jobs.discard_abandoned(connection, timedelta(hours=1)) == [dead]
        assert jobs.discard_abandoned(connection, timedelta(hours=1)) == []
    assert {row.id for row in query(database, "SELECT id FROM jobs")} == {slow, young, sealed}


def test_a_key_belongs_to_the_first_job_that_claims_it(database: Database, target_id: int) -> None:
    first, second = open_job(database, target_id), open_job(database, target_id)
    with database.transaction() as connection:
        assert jobs.key_holder(connection, "key") is None
        assert jobs.claim_key(connection, first, "key", b"content") == jobs.KeyHolder(first, b"content")
    with database.transaction() as connection:
        assert jobs.claim_key(connection, second, "key", b"other") == jobs.KeyHolder(first, b"content")
        assert jobs.claim_key(connection, second, "key ", b"other") == jobs.KeyHolder(second, b"other")
        assert jobs.key_holder(connection, "key") == jobs.KeyHolder(first, b"content")
    # Whoever is discarded gives its key back.
    with database.transaction() as connection:
        jobs.discard(connection, first)
        assert jobs.key_holder(connection, "key") is None


def test_of_those_who_claim_a_key_at_once_one_gets_it(database: Database, target_id: int) -> None:
    job_ids = [open_job(database, target_id) for _ in range(6)]
    barrier = threading.Barrier(6)

    def claim_key(job_id: UUID) -> UUID:
        with database.transaction() as connection:
            barrier.wait(30)
            return jobs.claim_key(connection, job_id, "night", job_id.bytes).job_id

    with ThreadPoolExecutor(6) as threads:
        holders = set(threads.map(claim_key, job_ids))
    assert len(holders) == 1
    assert [row.id for row in query(database, "SELECT id FROM jobs WHERE idempotency_key = 'night'")] == list(holders)


def test_failing_cancels_what_is_open_and_is_final(database: Database, target_id: int) -> None:
    job_id = submit(database, target_id, "abc", per_shard=1)
    other = submit(database, make_target(database, "other"), "abc", per_shard=1)
    finish(database, claimed(database, capacity=_only(database, "model")))
    held = claimed(database, capacity=_only(database, "model"))
    with database.transaction() as connection:
        assert control.fail(connection, job_id, "model_load_failed", "it's broken")
    failed = info(database, job_id)
    assert (failed.state, failed.error_code, failed.error_message) == (
        JobState.FAILED,
        "model_load_failed",
        "it's broken",
    )
    assert failed.finished_at is not None
    states = query(database, "SELECT state FROM shards WHERE job_id = :id ORDER BY ordinal", id=job_id)
    assert [row.state for row in states] == ["done", "cancelled", "cancelled"]
    before = query(database, "SELECT * FROM jobs WHERE id = :id", id=job_id)
    with database.transaction() as connection:
        assert not control.fail(connection, job_id, "again", "")
        assert shards.renew(connection, [held.token], timedelta(minutes=1)) == set()
        assert shards.release(connection, [held.token]) == 0
    store(database, target_id, held.shard_id, held.input_ids)
    with pytest.raises(LeaseLost), database.transaction() as connection:
        shards.close(connection, held, ShardOutcome({}))
    assert query(database, "SELECT * FROM jobs WHERE id = :id", id=job_id) == before
    assert claimed(database).job_id == other


@pytest.mark.parametrize("state", ["receiving", "succeeded", "cancelled", "expired"])
def test_a_job_that_does_not_run_cannot_fail(database: Database, target_id: int, state: str) -> None:
    job_id = submit(database, target_id, "a")
    execute(database, "UPDATE jobs SET state = :state", state=state)
    with database.transaction() as connection:
        assert not control.fail(connection, job_id, "code", "message")
    assert info(database, job_id).state == state
    assert [row.state for row in query(database, "SELECT state FROM shards")] == ["queued"]


@pytest.mark.parametrize("state", ["queued", "paused"])
def test_a_job_that_waits_can_fail(database: Database, target_id: int, state: str) -> None:
    job_id = submit(database, target_id, "a")
    execute(database, "UPDATE jobs SET state = :state", state=state)
    with database.transaction() as connection:
        assert control.fail(connection, job_id, "code", "message")
    assert [row.state for row in query(database, "SELECT state FROM shards")] == ["cancelled"]


def test_the_newest_jobs_come_first(database: Database, target_id: int) -> None:
    made = [submit(database, target_id, "a") for _ in range(4)]
    execute(database, "UPDATE jobs SET created_at = created_at - interval '1 hour' WHERE id = :id", id=made[3])
    execute(database, "UPDATE jobs SET state = 'failed' WHERE id = :id", id=made[1])
    newest = [made[2], made[1], made[0], made[3]]
    with database.transaction() as connection:
        assert [job.id for job in jobs.list_newest(connection)] == newest
        assert [job.id for job in jobs.list_newest(connection, limit=2)] == newest[:2]
        queued = jobs.list_newest(connection, JobFilter([JobState.QUEUED, JobState.PAUSED]), limit=2)
        assert [job.id for job in queued] == [made[2], made[0]]
        assert jobs.list_newest(connection, JobFilter([JobState.EXPIRED])) == []


def _only(database: Database, name: str) -> claims.Capacity:
    """Room for no model but the one, as long as the others need some."""
    execute(database, "UPDATE models SET memory_bytes = 1")
    [row] = query(database, "SELECT id FROM models WHERE name = :name", name=name)
    return claims.Capacity(loaded=[row.id], free_bytes=0)
