from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from contracts.errors import ItemFailed
from contracts.jobs import JobInfo
from contracts.states import JobState, Priority
from storage import claims, jobs, shards
from storage.claims import ALONE_PATIENCE, Capacity
from storage.counting import ShardOutcome
from storage.database import Database
from storage.rescue import PARTS, rescue
from storage.shards import Lease
from tests.jobs import MINUTE, claim, claimed, execute, expire, finish, make_target, query, store, submit

BUSY = Capacity(idle=False)
LETTERS = "abcdefgh"


@pytest.fixture
def target_id(database: Database) -> int:
    return make_target(database)


def many(database: Database, target_id: int, count: int, **how: Any) -> UUID:
    """A job of so many shards, each of one input of its own."""
    return submit(database, target_id, [f"{uuid4()}" for _ in range(count)], per_shard=1, **how)


def info(database: Database, job_id: UUID) -> JobInfo:
    with database.transaction() as connection:
        return jobs.get(connection, job_id)


def rest_is_over(database: Database) -> None:
    execute(database, "UPDATE shards SET not_before = now() WHERE not_before IS NOT NULL")


def loaded(database: Database, lease: Lease) -> Lease:
    with database.transaction() as connection:
        shards.loaded(connection, lease)
    return lease


def dies(database: Database, *leases: Lease) -> None:
    expire(database, *leases)
    assert set(rescue(database)) == {lease.shard_id for lease in leases}
    rest_is_over(database)


class TestLeases:
    def test_an_expired_lease_goes_back_after_a_pause_that_grows(self, database: Database, target_id: int) -> None:
        many(database, target_id, 2)
        kept = claimed(database)
        for attempt, pause in ((1, 1), (2, 2), (3, 4), (4, 8), (1500, 8)):
            execute(
                database,
                "UPDATE shards SET not_before = NULL, attempt = :n, alone = false WHERE state = 'queued'",
                n=attempt - 1,
            )
            lease = claimed(database)
            assert lease.attempt == attempt
            expire(database, lease)
            assert rescue(database) == [lease.shard_id]
            assert rescue(database) == []
            [row] = query(
                database,
                "SELECT not_before - now() AS pause, state, token FROM shards WHERE id = :id",
                id=lease.shard_id,
            )
            assert timedelta(seconds=pause - 1) < row.pause <= timedelta(seconds=pause)
            assert (row.state, row.token) == ("queued", None)
            assert claim(database) is None
        [row] = query(database, "SELECT token FROM shards WHERE state = 'leased'")
        assert row.token == kept.token

    def test_what_is_renewed_at_this_moment_is_left_alone(self, database: Database, target_id: int) -> None:
        many(database, target_id, 2)
        renewed, dead = claimed(database), claimed(database)
        expire(database, renewed, dead)
        with database.transaction() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
            shards.renew(connection, [renewed.token], MINUTE)
            assert rescue(database) == [dead.shard_id]
        assert finish(database, renewed) is False

    def test_the_leases_of_a_dead_worker_go_back_at_once(self, database: Database, target_id: int) -> None:
        many(database, target_id, 3)
        with database.transaction() as connection:
            for _ in range(2):
                claims.claim(connection, pool="default", worker="host:1", lease=MINUTE)
        other = claimed(database)
        assert len(rescue(database, "host:1")) == 2
        assert query(database, "SELECT id FROM shards WHERE state = 'leased'") == [(other.shard_id,)]


class TestAlone:
    def test_shards_of_a_dead_worker_run_alone_next(self, database: Database, target_id: int) -> None:
        many(database, target_id, 3)
        first, second = claimed(database), claimed(database)
        dies(database, first, second)
        fresh = claimed(database, capacity=BUSY)
        assert not fresh.alone  # a process that holds something takes the third
        assert claim(database, capacity=BUSY) is None
        suspects = [claimed(database), claimed(database)]
        assert {lease.shard_id for lease in suspects} == {first.shard_id, second.shard_id}
        assert all(lease.alone for lease in suspects)

    def test_busy_processes_empty_themselves_for_one_that_waits(self, database: Database, target_id: int) -> None:
        many(database, target_id, 3)
        urgent = many(database, target_id, 1, priority=Priority.INTERACTIVE)
        lease = claimed(database, lowest=Priority.NORMAL)
        assert lease.job_id == urgent
        with database.transaction() as connection:
            shards.release(connection, [lease.token])
        normal = query(database, "SELECT id FROM shards WHERE job_id <> :job LIMIT 1", job=urgent)[0].id
        waiting = "UPDATE shards SET alone = true, not_before = now() - CAST(:age AS interval) WHERE id = :id"
        execute(database, waiting, id=normal, age=ALONE_PATIENCE / 2)
        with database.transaction() as connection:  # it has not waited for long
            assert claims.claim(connection, pool="default", worker="w", lease=MINUTE, capacity=BUSY) is not None
            assert claims.claim(connection, pool="default", worker="w", lease=MINUTE, capacity=BUSY) is not None
            connection.rollback()
        execute(database, waiting, id=normal, age=ALONE_PATIENCE * 2)
        assert claimed(database, capacity=BUSY).job_id == urgent  # what is more urgent goes on
        assert claim(database, capacity=BUSY) is None
        alone = claimed(database)
        assert (alone.shard_id, alone.alone) == (normal, True)

    def test_one_that_is_given_back_is_waited_for_like_any_other(self, database: Database, target_id: int) -> None:
        many(database, target_id, 2)
        dies(database, claimed(database))
        given_back = claimed(database)
        assert given_back.alone
        with database.transaction() as connection:
            shards.release(connection, [given_back.token])
        execute(database, "UPDATE shards SET not_before = not_before - :age WHERE alone", age=ALONE_PATIENCE * 2)
        assert claim(database, capacity=BUSY) is None
        assert claimed(database).shard_id == given_back.shard_id

    def test_who_survives_alone_is_not_counted_against(self, database: Database, target_id: int) -> None:
        job_id = many(database, target_id, 2)
        dies(database, claimed(database), claimed(database))
        for _ in range(2):
            finish(database, loaded(database, claimed(database)))
        assert info(database, job_id).state is JobState.SUCCEEDED
        assert info(database, job_id).counts.computed == 2
        assert query(database, "SELECT deaths FROM shards") == [(0,), (0,)]


class TestKillers:
    def test_a_shard_that_kills_is_split_and_its_stored_results_count(self, database: Database, target_id: int) -> None:
        job_id = submit(database, target_id, LETTERS)
        dies(database, loaded(database, claimed(database)))
        parent = loaded(database, claimed(database))
        store(database, target_id, parent.shard_id, parent.input_ids[:3], truncated=parent.input_ids[:1])
        dies(database, parent)
        [row] = query(database, "SELECT state, token, finished_at FROM shards WHERE id = :id", id=parent.shard_id)
        assert (row.state, row.token) == ("split", None)
        assert row.finished_at is not None
        counts = info(database, job_id).counts
        assert (counts.computed, counts.truncated, counts.waiting) == (3, 1, 5)
        parts = query(database, "SELECT parent_id, alone, input_ids, estimated_tokens FROM shards WHERE state='queued'")
        assert sorted(i for part in parts for i in part.input_ids) == sorted(parent.input_ids[3:])
        assert all(part.alone and part.parent_id == parent.shard_id and part.estimated_tokens > 0 for part in parts)
        # What the parent stores later, as a zombie, is the job's own result too.
        late = claimed(database)
        store(database, target_id, parent.shard_id, late.input_ids)
        with database.transaction() as connection:
            shards.close(connection, late, ShardOutcome({}))
        assert info(database, job_id).counts.computed == 4
        assert info(database, job_id).counts.cached == 0

    def test_killers_fail_alone_among_many(self, database: Database, target_id: int) -> None:
        payloads = [f"input {number}" for number in range(700)]
        job_id = submit(database, target_id, payloads)
        rows = query(database, "SELECT id, payload::text AS text FROM inputs")
        killers = {row.id for row in rows if row.text in ('"input 17"', '"input 523"')}
        deaths = 0
        while (lease := claim(database)) is not None:
            loaded(database, lease)
            if killers & set(lease.input_ids):
                dies(database, lease)
                deaths += 1
            else:
                finish(database, lease)
        done = info(database, job_id)
        assert done.state is JobState.SUCCEEDED
        assert (done.counts.computed, done.counts.failed, done.counts.waiting) == (698, 2, 0)
        errors = query(database, "SELECT input_id, code, message FROM item_errors")
        assert {error.input_id for error in errors} == killers
        assert {error.code for error in errors} == {"worker_lost"}
        assert deaths <= 2 + 2 * 3 + 2 * 3  # once in company, once alone at each size, and the last three
        assert PARTS**3 > 700

    def test_a_model_that_somebody_could_load_is_not_to_blame(self, database: Database, target_id: int) -> None:
        submit(database, target_id, ["of another job"])
        finish(database, claimed(database))
        job_id = submit(database, target_id, LETTERS)
        for _ in range(6):
            dies(database, claimed(database))
        assert info(database, job_id).state is JobState.RUNNING
        finish(database, loaded(database, claimed(database)))
        assert info(database, job_id).state is JobState.SUCCEEDED

    def test_deaths_while_loading_fail_the_job_and_split_nothing(self, database: Database, target_id: int) -> None:
        job_id = submit(database, target_id, LETTERS)
        for _ in range(4):
            lease = claimed(database)
            assert lease.loading
            dies(database, lease)
        failed = info(database, job_id)
        assert (failed.state, failed.error_code) == (JobState.FAILED, "model_load_failed")
        assert "3 worker processes died" in str(failed.error_message)
        assert query(database, "SELECT count(*) FROM shards WHERE state <> 'cancelled'") == [(0,)]


class TestBreaker:
    def fail_all(self, database: Database, lease: Lease, code: str) -> None:
        with database.transaction() as connection:
            errors = {i: ItemFailed(code, "no kernel image") for i in lease.input_ids}
            shards.close(connection, lease, ShardOutcome(errors))

    def test_a_job_of_which_everything_fails_is_paused_with_the_reason(
        self, database: Database, target_id: int
    ) -> None:
        job_id = submit(database, target_id, [f"{n}" for n in range(500)], per_shard=100)
        self.fail_all(database, claimed(database), "engine_error")
        finish(database, claimed(database))  # one that succeeds: it was an accident
        self.fail_all(database, claimed(database), "engine_error")
        assert info(database, job_id).state is JobState.RUNNING
        self.fail_all(database, claimed(database), "engine_error")
        paused = info(database, job_id)
        assert (paused.state, paused.error_code) == (JobState.PAUSED, "breaker")
        assert "engine_error: no kernel image" in str(paused.error_message)
        assert f"batchmill jobs resume {job_id}" in str(paused.error_message)
        assert claim(database) is None

    def test_inputs_that_are_bad_themselves_trip_nothing(self, database: Database, target_id: int) -> None:
        job_id = submit(database, target_id, [f"{n}" for n in range(500)], per_shard=100)
        while (lease := claim(database)) is not None:
            self.fail_all(database, lease, "too_long")
        assert info(database, job_id).state is JobState.SUCCEEDED
        assert info(database, job_id).counts.failed == 500
