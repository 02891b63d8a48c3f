"""Jobs and shards, driven through the storage functions in any order, against a model of them in Python."""

from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from contracts.errors import NothingToRetry, WrongState
from contracts.itemcodes import ItemCode
from contracts.states import Priority
from storage import control, counting, jobs, retries
from storage.database import Database
from storage.rescue import LIVES, PARTS, rescue
from tests.jobs import execute, make_target, query, store
from tests.properties.ledger import Ledger
from tests.properties.modelled import Job, Shard
from tests.properties.scale import examples
from tests.properties.working import WORKERS, Working


class States(Working):
    """Each rule does one thing to the database and to the model; after each the two are compared."""

    # Deaths

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def let_leases_run_out(self, data: st.DataObject) -> None:
        dead = data.draw(st.lists(st.sampled_from([shard for shard, _ in self.leases]), max_size=3))
        dead = [shard for shard in {id(s): s for s in dead}.values() if shard.state == "leased"]
        statement = "UPDATE shards SET lease_expires_at = now() - interval '1 second' WHERE id = ANY(:ids)"
        execute(self.database, statement, ids=[shard.id for shard in dead])
        self._die(dead, None)

    @rule(
        worker=st.sampled_from(WORKERS), times=st.integers(1, LIVES + 3), loads=st.booleans(), stores=st.integers(0, 2)
    )
    def kill(self, worker: str, times: int, loads: bool, stores: int) -> None:
        """Again and again, as soon as it has taken something up, and stored a little of it."""
        for _ in range(times):
            for shard, lease in self.leases:
                if stores and self._holds(shard, lease) and shard.worker == worker:
                    store(self.database, lease.target_id, lease.shard_id, lease.input_ids[:stores])
                    self._stored(lease.target_id, lease.input_ids[:stores], shard.id)
            held = [s for job in self.jobs for s in job.shards if s.state == "leased" and s.worker == worker]
            self._die(held, worker)
            self.wake()
            self._claim(worker, True, not loads, Priority.BULK)

    def _die(self, dead: list[Shard], worker: str | None) -> None:
        assert set(rescue(self.database, worker)) == {shard.id for shard in dead}
        # All that rests, rests until a rule lets it wake: the test does not race with the clock.
        execute(self.database, "UPDATE shards SET not_before = 'infinity' WHERE not_before > now()")
        for shard in dead:
            if shard.state == "leased" and not shard.alone:
                shard.state, shard.alone, shard.resting = "queued", True, True
                dead = [other for other in dead if other is not shard]
        for shard in sorted(dead, key=lambda shard: shard.id):
            if shard.state == "leased":
                self._judge(shard)

    def _judge(self, shard: Shard) -> None:
        job = shard.job
        shard.state, shard.resting = "queued", True
        shard.deaths += not shard.loading
        shard.load_deaths += shard.loading
        left = [i for i in shard.input_ids if (job.target, i) not in self.results]
        if shard.loading:
            computed = any(s.state == "done" for o in self.jobs if o.target == job.target for s in o.shards)
            if shard.load_deaths >= LIVES and not computed:
                job.end("failed")
        elif len(left) > 1:
            statement = "SELECT id, input_ids FROM shards WHERE parent_id = :id ORDER BY id"
            parts = [Shard(row[0], job, row[1], alone=True) for row in query(self.database, statement, id=shard.id)]
            assert sorted(i for part in parts for i in part.input_ids) == sorted(left)
            assert 1 < len(parts) <= PARTS
            shard.state = "split"
            job.shards += parts
            self._count(shard, [i for i in shard.input_ids if i not in left], {}, 0)
        elif left and shard.deaths >= LIVES:
            shard.state = "done"
            self._count(shard, shard.input_ids, {left[0]: ItemCode.WORKER_LOST}, counting.WORKER_LOST_WEIGHT)

    @rule()
    def wake(self) -> None:
        execute(self.database, "UPDATE shards SET not_before = NULL WHERE state = 'queued'")
        for job in self.jobs:
            for shard in job.shards:
                shard.resting = False

    # Control

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), how=st.sampled_from(["pause", "resume", "cancel", "fail"]))
    def control(self, data: st.DataObject, how: str) -> None:
        self._control(data.draw(st.sampled_from(self.jobs)), how)

    @precondition(lambda self: any(job.goes_on for job in self.jobs))
    @rule(data=st.data(), hows=st.lists(st.sampled_from(["pause", "resume"]), min_size=2, max_size=3))
    def halt(self, data: st.DataObject, hows: list[str]) -> None:
        job = data.draw(st.sampled_from([job for job in self.jobs if job.goes_on]))
        for how in hows:
            self._control(job, how)

    def _control(self, job: Job, how: str) -> None:
        ends = {"cancel": "cancelled", "fail": "failed"}.get(how)

        def act() -> bool:
            with self.database.transaction() as connection:
                if how == "fail":
                    return control.fail(connection, job.id, "model_load_failed", "no")
                return {"cancel": control.cancel, "pause": control.pause, "resume": control.resume}[how](
                    connection, job.id
                )

        if how != "fail" and (job.state == "receiving" or (job.ended and job.state != ends)):
            self.refused(WrongState, act)
            return
        changes = job.goes_on and not (how == "pause" and job.state == "paused")
        changes &= not (how == "resume" and job.state != "paused")
        if not changes:
            assert self.unchanged(act) is False
            return
        assert act()
        if ends is not None:
            job.end(ends)
        elif how == "pause":
            job.state = "paused"
        else:
            job.state, job.in_row = "running" if job.began else "queued", 0

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        execute(self.database, "UPDATE jobs SET expires_at = now() - interval '1 second' WHERE id = :id", id=job.id)
        job.overdue = True

    @rule()
    def tick(self) -> None:
        with self.database.transaction() as connection:
            expired = control.expire_due(connection)
        due = [job for job in self.jobs if job.overdue and job.goes_on]
        assert set(expired) == {job.id for job in due}
        for job in due:
            job.end("expired")

    @precondition(lambda self: any(job.ended and not job.retried for job in self.jobs))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([job for job in self.jobs if job.ended and not job.retried]))
        cancelled = {i for shard in job.shards if shard.state == "cancelled" for i in shard.input_ids}
        wanted = cancelled | job.errors.keys()

        def receive() -> UUID:
            with self.database.transaction() as connection:
                jobs.lock(connection, job.id)
                return retries.receive(connection, job.id, job.target)

        if not wanted:
            self.refused(NothingToRetry, receive)
            return
        retry = Job(receive(), job.target, job.rank, job.told, retry_of=job)
        job.retried = True
        rows = query(
            self.database,
            "SELECT input_id, payload::text FROM items JOIN inputs ON inputs.id = input_id WHERE job_id = :id",
            id=retry.id,
        )
        assert {row[0] for row in rows} == wanted
        retry.inputs = [row[1] for row in rows]
        self.jobs.append(retry)

    # What holds

    @invariant()
    def the_rows_agree_with_one_another(self) -> None:
        self.ledger.check()

    @invariant()
    def the_rows_are_as_predicted(self) -> None:
        rows = self.ledger.rows("SELECT id, state, items, cached, computed, failed, failed_in_row FROM jobs")
        assert set(rows) == {
            (job.id, job.state, len(job.inputs), job.cached, job.computed, len(job.errors), job.in_row)
            for job in self.jobs
        }
        rows = self.ledger.rows("SELECT id, state, attempt, alone, deaths, load_deaths, token FROM shards")
        assert set(rows) == {
            (s.id, s.state, s.attempt, s.alone, s.deaths, s.load_deaths, s.lease.token if s.lease else None)
            for job in self.jobs
            for s in job.shards
        }
        rows = self.ledger.rows("SELECT job_id, input_id, code FROM item_errors")
        assert set(rows) == {(job.id, i, code) for job in self.jobs for i, code in job.errors.items()}
        rows = self.ledger.rows("SELECT target_id, input_id, shard_id FROM results")
        assert {(row[0], row[1]): row[2] for row in rows} == self.results

    @invariant()
    def what_was_said_of_an_item_stays(self) -> None:
        now = self.ledger.outcomes()
        assert {key: now.get(key) for key in self.said} == self.said
        self.said = now


@pytest.fixture
def machine(database: Database, ledger: Ledger) -> type[States]:
    targets = [make_target(database, name) for name in ("one", "two")]
    statement = "INSERT INTO webhook_endpoints (url, secret) VALUES ('https://example.org/', '') RETURNING id"
    (row,) = query(database, statement)
    return type("Machine", (States,), {"database": database, "ledger": ledger, "targets": targets, "endpoint": row[0]})


@pytest.mark.timeout(3600)
def test_states(machine: type[States]) -> None:
    how = settings(max_examples=examples(0.2, 0.1), stateful_step_count=40)
    run_state_machine_as_test(machine, settings=how)
