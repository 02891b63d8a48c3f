import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from contracts.errors import DatabaseUnavailable, ItemFailed, LeaseLost
from contracts.jobs import JobCounts
from contracts.states import JobState, Priority
from storage import claims, control, jobs, shards
from storage.claims import Capacity
from storage.counting import ShardOutcome
from storage.database import Database
from storage.rescue import rescue
from storage.shards import Lease
from tests.jobs import MINUTE, claim, claimed, execute, expire, finish, make_target, query, store, submit

LETTERS = "abcdefgh"


@pytest.fixture
def target_id(database: Database) -> int:
    return make_target(database)


def many(database: Database, target_id: int, count: int, **how: Any) -> UUID:
    """A job of so many shards, each of one input of its own."""
    return submit(database, target_id, [f"{uuid4()}" for _ in range(count)], per_shard=1, **how)


def model_of(database: Database, target_id: int) -> int:
    [row] = query(database, "SELECT model_id FROM targets WHERE id = :id", id=target_id)
    return int(row.model_id)


def counts(database: Database, job_id: UUID) -> tuple[JobState, JobCounts]:
    with database.transaction() as connection:
        job = jobs.get(connection, job_id)
    return job.state, job.counts


def everything(database: Database) -> list[Any]:
    return [query(database, f"SELECT * FROM {table} ORDER BY 1, 2") for table in ("jobs", "shards", "item_errors")]


class TestClaim:
    def test_a_lease_says_what_is_to_be_done(self, database: Database, target_id: int) -> None:
        job_id = submit(database, target_id, ["short", "the longest of them", "middling"], priority=Priority.BULK)
        lease = claimed(database)
        assert (lease.job_id, lease.target_id, lease.attempt, lease.priority) == (job_id, target_id, 1, Priority.BULK)
        rows = query(database, "SELECT id FROM inputs ORDER BY size DESC")
        assert lease.input_ids == [row.id for row in rows]
        [shard] = query(database, "SELECT *, lease_expires_at - now() AS rest FROM shards")
        assert (shard.id, shard.state, shard.token, shard.worker) == (lease.shard_id, "leased", lease.token, "test")
        assert timedelta(seconds=50) < shard.rest <= MINUTE
        [job] = query(database, "SELECT * FROM jobs")
        assert (job.state, job.service) == ("running", shard.estimated_tokens)
        assert job.started_at == job.served_at
        assert job.started_at is not None
        assert claim(database) is None

    def test_the_urgent_class_comes_first(self, database: Database, target_id: int) -> None:
        made = {
            priority: submit(database, target_id, [priority.value], priority=priority)
            for priority in (Priority.BULK, Priority.NORMAL, Priority.INTERACTIVE)
        }
        assert claim(database, lowest=Priority.INTERACTIVE).job_id == made[Priority.INTERACTIVE]
        assert claim(database, lowest=Priority.INTERACTIVE) is None
        assert claimed(database).job_id == made[Priority.NORMAL]
        assert claim(database, lowest=Priority.NORMAL) is None
        assert claimed(database).job_id == made[Priority.BULK]

    def test_the_least_served_comes_first_and_age_decides_between_equals(
        self, database: Database, target_id: int
    ) -> None:
        first, second = many(database, target_id, 4), many(database, target_id, 4)
        order = [claimed(database).job_id for _ in range(4)]
        assert order == [first, second, first, second]
        # A newcomer begins where the least served of its class stands: neither ahead of them nor behind.
        execute(database, "UPDATE jobs SET service = service + 1000")
        bulk = many(database, target_id, 1, priority=Priority.BULK)
        elsewhere = many(database, target_id, 1, pool="elsewhere")
        third = many(database, target_id, 4)
        service = {row.id: row.service for row in query(database, "SELECT id, service FROM jobs")}
        assert service[third] == service[first] == service[second] > 1000
        assert service[bulk] == service[elsewhere] == 0
        assert Counter(claimed(database).job_id for _ in range(6)) == {first: 2, second: 2, third: 2}

    def test_models_in_memory_come_first_unless_another_job_starves(self, database: Database, target_id: int) -> None:
        other = make_target(database, "other")
        capacity = Capacity(loaded=[model_of(database, other)], vacant_bytes=-1)
        cold, warm = many(database, target_id, 3), many(database, other, 6)
        execute(database, "UPDATE jobs SET service = 10000 WHERE id = :id", id=warm)
        first = claimed(database)
        assert first.job_id == cold
        assert [claimed(database, capacity=capacity).job_id for _ in range(2)] == [warm, warm]
        expire(database, first)
        execute(database, "UPDATE jobs SET served_at = now() - interval '31 seconds' WHERE id = :id", id=cold)
        second, third = (claimed(database, capacity=capacity) for _ in range(2))
        assert [second.job_id, third.job_id] == [cold, warm]
        expire(database, second)
        # One that was never served starves from the moment it was queued.
        new = many(database, target_id, 1)
        assert claimed(database, capacity=capacity).job_id == warm
        execute(
            database, "UPDATE jobs SET queued_at = now() - interval '31 seconds', service = 0 WHERE id = :id", id=new
        )
        assert claimed(database, capacity=capacity).job_id == new
        # Where there is room for both models, the job that was served least goes first at once.
        roomy = replace(capacity, vacant_bytes=2**40)
        cheap = many(database, target_id, 1)
        execute(database, "UPDATE jobs SET service = 0 WHERE id = :id", id=cheap)
        assert claimed(database, capacity=roomy).job_id == cheap
        # A more urgent class is not kept waiting by what is in memory.
        urgent = many(database, target_id, 1, priority=Priority.INTERACTIVE)
        assert claimed(database, capacity=capacity).job_id == urgent

    def test_only_what_fits_into_memory_is_claimed(self, database: Database) -> None:
        small, large = (make_target(database, f"of{size}", memory_bytes=size) for size in (10, 2**40))
        many(database, small, 1)
        large_job = many(database, large, 2)
        assert claim(database, capacity=Capacity(free_bytes=9, total_bytes=2**40)) is None
        loaded = Capacity(loaded=[model_of(database, large)], free_bytes=-5, total_bytes=2**40)
        assert claimed(database, capacity=loaded).job_id == large_job
        fits = claimed(database, capacity=Capacity(free_bytes=10, total_bytes=2**40))
        assert fits.target_id == small
        # What is larger than all of it has all of it: it stands partly elsewhere, or its job says that it cannot.
        total = 2**40 - 1
        assert claim(database, capacity=Capacity(free_bytes=total - 1, total_bytes=total)) is None
        assert claimed(database, capacity=Capacity(free_bytes=total, total_bytes=total)).job_id == large_job

    def test_models_take_turns_once_the_other_job_has_waited_for_what_loading_is_worth(
        self, database: Database, target_id: int
    ) -> None:
        # Memory holds one of two models, and the one that is there is in use.
        other = make_target(database, "other", memory_bytes=10)
        here, waiting = many(database, target_id, 9), many(database, other, 9)
        full = Capacity(loaded=[model_of(database, target_id)], free_bytes=9, vacant_bytes=9, total_bytes=10)
        empty = replace(full, free_bytes=10)

        def wait(seconds: float) -> None:
            moment = "now() - make_interval(secs => :seconds)"
            execute(database, f"UPDATE jobs SET queued_at = {moment} WHERE id = :id", id=waiting, seconds=seconds)

        wait(8)
        assert claimed(database, capacity=full).job_id == here
        wait(12)
        # Nobody claims any more, until those that use the model are done: then the other one has its turn.
        assert claim(database, capacity=full) is None
        assert claimed(database, capacity=replace(full, settled=False)).job_id == here
        turn = claimed(database, capacity=empty)
        assert turn.job_id == waiting
        assert turn.loading
        # While another worker computes by the model, or loads it, nobody starves.
        execute(database, "UPDATE jobs SET served_at = now() - interval '12 seconds' WHERE id = :id", id=waiting)
        assert claimed(database, capacity=full).job_id == here
        expire(database, turn)
        assert claim(database, capacity=full) is None
        # A model that takes long to load is worth a longer wait.
        execute(database, "UPDATE jobs SET served_at = NULL WHERE id = :id", id=waiting)
        execute(
            database,
            """INSERT INTO batch_budgets (model_id, device, budget_tokens, tokens_per_second, load_seconds)
               VALUES (:model, 'cpu', 1, 1, 3)""",
            model=model_of(database, other),
        )
        assert claimed(database, capacity=empty).job_id == here
        wait(31)
        assert claimed(database, capacity=empty).job_id == waiting

    def test_an_interactive_job_waits_for_its_model_a_tenth_as_long(self, database: Database, target_id: int) -> None:
        other = make_target(database, "other", memory_bytes=10)
        here = many(database, target_id, 9)
        urgent = many(database, other, 9, priority=Priority.INTERACTIVE)
        full = Capacity([model_of(database, target_id)], 9, 9, 10, settled=False)
        assert claimed(database, capacity=full).job_id == here
        execute(database, "UPDATE jobs SET queued_at = now() - interval '1.1 seconds' WHERE id = :id", id=urgent)
        assert claim(database, capacity=full) is None
        assert claimed(database, capacity=replace(full, free_bytes=10)).job_id == urgent

    @pytest.mark.parametrize("state", ["receiving", "paused", "succeeded", "failed", "cancelled", "expired"])
    def test_nothing_is_claimed_of_a_job_that_does_not_run(
        self, database: Database, target_id: int, state: str
    ) -> None:
        many(database, target_id, 1)
        execute(database, "UPDATE jobs SET state = :state", state=state)
        assert claim(database) is None
        with database.transaction() as connection:
            assert claims.claimable(connection, 16) == {}
            assert not claims.any_claimable(connection, "default")

    def test_nothing_is_claimed_before_its_time_or_in_another_pool(self, database: Database, target_id: int) -> None:
        many(database, target_id, 3)
        assert claim(database, pool="elsewhere") is None
        with database.transaction() as connection:
            assert claims.claimable(connection, 2) == {"default": 2}
            assert claims.claimable(connection, 4) == {"default": 3}
        execute(database, "UPDATE shards SET not_before = now() + interval '1 hour' WHERE ordinal < 3")
        assert claimed(database) is not None
        assert claim(database) is None
        with database.transaction() as connection:
            assert not claims.any_claimable(connection, "default")
        execute(database, "UPDATE shards SET not_before = now() WHERE ordinal = 2")
        with database.transaction() as connection:
            assert claims.claimable(connection, 16) == {"default": 1}
            assert claims.any_claimable(connection, "default")
            assert not claims.any_claimable(connection, "elsewhere")
        assert claimed(database) is not None

    def test_interactive_work_of_a_pool_is_seen(self, database: Database, target_id: int) -> None:
        submit(database, target_id, "ab", priority=Priority.BULK)
        with database.transaction() as connection:
            assert not claims.any_interactive(connection, "default")
        submit(database, target_id, "c", priority=Priority.INTERACTIVE)
        with database.transaction() as connection:
            assert claims.any_interactive(connection, "default")
            assert not claims.any_interactive(connection, "elsewhere")

    def test_what_waits_is_told_with_the_longest_wait(self, database: Database, target_id: int) -> None:
        def waiting(most: int = 16, pool: str = "default") -> claims.Waiting:
            with database.transaction() as connection:
                return claims.waiting(connection, pool, most)

        assert waiting() == claims.Waiting(0, 0.0)
        served, fresh = many(database, target_id, 3), many(database, target_id, 2)
        execute(database, "UPDATE jobs SET queued_at = now() - interval '1 hour' WHERE id = :id", id=served)
        assert waiting().shards == 5
        assert waiting(4).shards == 4
        assert waiting(pool="elsewhere") == claims.Waiting(0, 0.0)
        assert waiting().oldest_seconds == pytest.approx(3600, abs=30)
        execute(database, "UPDATE jobs SET served_at = now() - interval '1 minute' WHERE id = :id", id=served)
        assert waiting().oldest_seconds == pytest.approx(60, abs=30)
        execute(database, "UPDATE shards SET state = 'cancelled' WHERE job_id = :id", id=served)
        execute(database, "UPDATE jobs SET queued_at = now() - interval '10 minutes' WHERE id = :id", id=fresh)
        assert waiting().oldest_seconds == pytest.approx(600, abs=30)

    def test_what_another_job_computes_already_is_left_to_it(self, database: Database, target_id: int) -> None:
        values = ["the longest", "shorter"]
        first = submit(database, target_id, values, per_shard=1)
        longest = claimed(database)
        second = submit(database, target_id, values, per_shard=1)
        other = submit(database, make_target(database, "other"), values[:1])
        # The shorter is claimed for one of the two, the longer for neither; what it is to another target counts not.
        found = [claimed(database), claimed(database)]
        assert {lease.job_id for lease in found} in ({first, other}, {second, other})
        assert [lease.input_ids == longest.input_ids for lease in found].count(True) == 1
        assert claim(database) is None
        with database.transaction() as connection:
            assert claims.claimable(connection, 16) == {}
            assert not claims.any_claimable(connection, "default")
            assert shards.release(connection, [longest.token]) == 1
            assert claims.claimable(connection, 16) == {"default": 2}
        again = claimed(database)
        assert again.input_ids == longest.input_ids
        assert claim(database) is None
        finish(database, again)
        last = claimed(database)
        assert last.input_ids == longest.input_ids
        assert {again.job_id, last.job_id} == {first, second}

    def test_many_claim_at_once_and_each_shard_once(self, database_url: str, target_id: int) -> None:
        with Database(database_url, pool_size=8) as database, ThreadPoolExecutor(8) as threads:
            for _ in range(3):
                many(database, target_id, 40)
            for _ in range(16):
                many(database, target_id, 1)
            barrier = threading.Barrier(8)

            def drain(_: int) -> list[Lease]:
                barrier.wait(30)
                leases = []
                while (lease := claim(database)) is not None:
                    leases.append(lease)
                return leases

            found = [lease for leases in threads.map(drain, range(8)) for lease in leases]
            assert len({lease.shard_id for lease in found}) == len({lease.token for lease in found}) == len(found)
            assert len(found) == 136
            wrong = query(
                database,
                """
                SELECT jobs.id FROM jobs JOIN shards ON shards.job_id = jobs.id
                GROUP BY jobs.id HAVING jobs.service <> sum(estimated_tokens)
                """,
            )
            assert wrong == []

    @pytest.mark.parametrize("loss", ["taken", "paused"])
    def test_whoever_comes_too_late_for_a_job_takes_the_next(
        self, database: Database, target_id: int, loss: str
    ) -> None:
        first, second = many(database, target_id, 1), many(database, target_id, 1)
        with ThreadPoolExecutor(1) as threads:
            with database.transaction() as connection:
                jobs.lock(connection, first)
                late = threads.submit(claimed, database)
                while not query(database, "SELECT 1 FROM pg_locks WHERE NOT granted"):
                    assert not late.done()
                if loss == "taken":
                    taken = claims.claim(connection, pool="default", worker="fast", lease=MINUTE)
                    assert taken is not None
                    assert taken.job_id == first
                else:
                    connection.execute(text("UPDATE jobs SET state = 'paused' WHERE id = :id"), {"id": first})
            assert late.result(10).job_id == second

    def test_nobody_waits_for_long_for_a_job_that_is_locked(self, database: Database, target_id: int) -> None:
        job_id = submit(database, target_id, "abc")
        with database.transaction() as connection:
            jobs.lock(connection, job_id)
            with pytest.raises(DatabaseUnavailable, match="lock timeout"):
                claim(database)
        assert claimed(database).job_id == job_id


class TestLease:
    def test_a_heartbeat_renews_what_is_held(self, database: Database, target_id: int) -> None:
        many(database, target_id, 3)
        held, closed, other = (claimed(database) for _ in range(3))
        finish(database, closed)
        tokens = [held.token, closed.token, uuid4()]
        with database.transaction() as connection:
            assert shards.renew(connection, tokens, timedelta(hours=1)) == {held.token}
            assert shards.renew(connection, [], timedelta(hours=1)) == set()
        rows = query(database, "SELECT id FROM shards WHERE lease_expires_at > now() + interval '10 minutes'")
        assert [row.id for row in rows] == [held.shard_id]
        assert other.shard_id != held.shard_id

    def test_a_stale_token_changes_nothing(self, database: Database, target_id: int) -> None:
        submit(database, target_id, "abc")
        stale = claimed(database)
        expire(database, stale)
        assert rescue(database) == [stale.shard_id]
        execute(database, "UPDATE shards SET not_before = NULL")
        current = claimed(database)
        assert (current.shard_id, current.attempt) == (stale.shard_id, 2)
        store(database, target_id, stale.shard_id, stale.input_ids)
        before = everything(database)
        outcome = ShardOutcome({stale.input_ids[0]: ItemFailed("bad", "")}, 1.0, 10, 20, 30)
        with pytest.raises(LeaseLost), database.transaction() as connection:
            shards.close(connection, stale, outcome)
        with database.transaction() as connection:
            assert shards.renew(connection, [stale.token], timedelta(hours=1)) == set()
            assert shards.release(connection, [stale.token]) == 0
        assert everything(database) == before
        assert finish(database, current)
        before = everything(database)
        for lease in (stale, current):
            with pytest.raises(LeaseLost), database.transaction() as connection:
                shards.close(connection, lease, outcome)
        assert everything(database) == before

    def test_release_gives_back_at_once_and_does_not_count(self, database: Database, target_id: int) -> None:
        job_id = many(database, target_id, 2)
        first, second = claimed(database), claimed(database)
        with database.transaction() as connection:
            assert shards.release(connection, [first.token, uuid4()]) == 1
            assert shards.release(connection, []) == 0
        again = claimed(database)
        assert (again.shard_id, again.attempt) == (first.shard_id, 1)
        assert again.token != first.token
        assert not finish(database, again)
        assert finish(database, second)
        assert counts(database, job_id)[0] is JobState.SUCCEEDED


class TestClose:
    def test_counters_equal_the_rows(self, database: Database, target_id: int) -> None:
        job_id = submit(database, target_id, LETTERS, per_shard=4)
        first, second = claimed(database), claimed(database)
        # Of the first shard: one failed, one was cut, one was computed by another job in the meantime and cut there.
        elsewhere = submit(database, target_id, "x")
        other_shard = claimed(database)
        assert other_shard.job_id == elsewhere
        store(database, target_id, other_shard.shard_id, first.input_ids[:1], truncated=first.input_ids[:1])
        assert not finish(
            database, first, {first.input_ids[3]: ItemFailed("too_long", "9 tokens")}, truncated=first.input_ids[1:2]
        )
        state, counted = counts(database, job_id)
        assert (state, counted) == (
            JobState.RUNNING,
            JobCounts(items=8, distinct=8, cached=1, computed=2, failed=1, truncated=2),
        )
        store(database, target_id, second.shard_id, second.input_ids)
        with database.transaction() as connection:
            assert shards.close(connection, second, ShardOutcome({}, 2.5, 100, 150, 200))
        state, counted = counts(database, job_id)
        assert (state, counted) == (
            JobState.SUCCEEDED,
            JobCounts(items=8, distinct=8, cached=1, computed=6, failed=1, truncated=2),
        )
        assert counted.waiting == 0
        [job] = query(database, "SELECT * FROM jobs WHERE id = :id", id=job_id)
        assert (job.micro_batches, job.real_tokens, job.padded_tokens, job.budget_tokens) == (2.5, 100, 150, 200)
        assert job.open_shards == 0
        assert job.finished_at is not None
        errors = query(database, "SELECT job_id, input_id, code, message FROM item_errors")
        assert [tuple(row) for row in errors] == [(job_id, first.input_ids[3], "too_long", "9 tokens")]
        shard = query(database, "SELECT state, token, lease_expires_at FROM shards WHERE job_id = :id", id=job_id)
        assert [tuple(row) for row in shard] == [("done", None, None)] * 2

    def test_what_failed_here_and_succeeded_elsewhere_counts_as_failed(
        self, database: Database, target_id: int
    ) -> None:
        job_id = submit(database, target_id, "ab")
        lease = claimed(database)
        store(database, target_id, uuid4(), lease.input_ids[:1], truncated=lease.input_ids[:1])
        assert finish(database, lease, {lease.input_ids[0]: ItemFailed("engine_error", "it fell over")})
        assert counts(database, job_id)[1] == JobCounts(items=2, distinct=2, computed=1, failed=1)

    def test_every_input_may_fail(self, database: Database, target_id: int) -> None:
        job_id = submit(database, target_id, "ab")
        lease = claimed(database)
        assert finish(database, lease, {input_id: ItemFailed("bad", "") for input_id in lease.input_ids})
        assert counts(database, job_id) == (JobState.SUCCEEDED, JobCounts(items=2, distinct=2, failed=2))

    def test_of_two_that_computed_the_same_the_later_counts_it_as_cached(
        self, database: Database, target_id: int
    ) -> None:
        first, second = submit(database, target_id, ["aa", "b", "c"]), submit(database, target_id, ["dd", "b", "c"])
        mine, theirs = claimed(database), claimed(database)
        assert (mine.job_id, theirs.job_id) == (first, second)
        assert finish(database, theirs)
        assert finish(database, mine)
        assert counts(database, second)[1] == JobCounts(items=3, distinct=3, computed=3)
        assert counts(database, first)[1] == JobCounts(items=3, distinct=3, cached=2, computed=1)

    def test_what_an_earlier_life_of_the_shard_computed_is_its_own(self, database: Database, target_id: int) -> None:
        job_id = submit(database, target_id, "abc")
        dead = claimed(database)
        store(database, target_id, dead.shard_id, dead.input_ids[:2])
        expire(database, dead)
        rescue(database)
        execute(database, "UPDATE shards SET not_before = NULL")
        assert finish(database, claimed(database))
        assert counts(database, job_id)[1] == JobCounts(items=3, distinct=3, computed=3)

    def test_a_paused_job_finishes_what_is_leased(self, database: Database, target_id: int) -> None:
        job_id = many(database, target_id, 2)
        first, second = claimed(database), claimed(database)
        execute(database, "UPDATE jobs SET state = 'paused'")
        assert not finish(database, first)
        assert counts(database, job_id)[0] is JobState.PAUSED
        assert finish(database, second)
        assert counts(database, job_id)[0] is JobState.SUCCEEDED

    def test_one_close_ends_the_job(self, database_url: str, target_id: int) -> None:
        with Database(database_url, pool_size=8) as database, ThreadPoolExecutor(8) as threads:
            job_id = many(database, target_id, 24)
            leases = [claimed(database) for _ in range(24)]
            ended = list(threads.map(lambda lease: finish(database, lease), leases))
            assert sum(ended) == 1
            assert counts(database, job_id) == (JobState.SUCCEEDED, JobCounts(items=24, distinct=24, computed=24))
            [(open_shards,)] = query(database, "SELECT open_shards FROM jobs")
            assert open_shards == 0

    def test_a_job_that_fails_at_this_moment_comes_first(self, database: Database, target_id: int) -> None:
        job_id = many(database, target_id, 1)
        lease = claimed(database)
        with ThreadPoolExecutor(1) as threads:
            with database.transaction() as connection:
                jobs.lock(connection, job_id)
                closing = threads.submit(finish, database, lease)
                while not query(database, "SELECT 1 FROM pg_locks WHERE NOT granted"):
                    assert not closing.done()
                # Whoever closes waits for the job before anything else: otherwise each would wait for the other.
                assert control.fail(connection, job_id, "model_error", "")
            with pytest.raises(LeaseLost):
                closing.result(10)
        assert counts(database, job_id) == (JobState.FAILED, JobCounts(items=1, distinct=1))

    def test_ids_of_64_bits(self, database: Database, target_id: int) -> None:
        execute(database, "ALTER SEQUENCE inputs_id_seq RESTART WITH 9223372036854775800")
        try:
            job_id = submit(database, target_id, ["a", "b", "c"])
            lease = claimed(database)
            assert min(lease.input_ids) == 2**63 - 8
            assert finish(database, lease, {lease.input_ids[0]: ItemFailed("bad", "")})
            assert counts(database, job_id)[1] == JobCounts(items=3, distinct=3, computed=2, failed=1)
        finally:
            execute(database, "ALTER SEQUENCE inputs_id_seq RESTART WITH 1000000")
