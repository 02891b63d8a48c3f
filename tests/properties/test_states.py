"""Jobs and shards, driven through the storage functions in any order, against a model of them in Python."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from contracts.errors import ItemFailed, LeaseLost, NothingToRetry, WrongState
from contracts.itemcodes import ItemCode
from contracts.states import Priority
from storage import claims, control, counting, jobs, retries, shards
from storage.claims import Capacity
from storage.counting import ShardOutcome
from storage.database import Database
from storage.rescue import LIVES, PARTS, rescue
from storage.shards import Lease
from tests.jobs import MINUTE, append, as_lines, execute, make_target, query, seal, store
from tests.properties.ledger import TERMINAL, Ledger
from tests.properties.scale import examples

PAYLOADS = [f"{'x' * (size * 7)} {number}" for size in range(4) for number in range(3)]
"""Few, so that jobs share inputs and results are found again."""
WORKERS = ["host:1", "host:2"]


@dataclass(eq=False)
class Shard:
    id: UUID
    job: "Job"
    input_ids: list[int]
    state: str = "queued"
    attempt: int = 0
    alone: bool = False
    loading: bool = False
    deaths: int = 0
    load_deaths: int = 0
    worker: str | None = None
    resting: bool = False
    held: Lease | None = None

    @property
    def lease(self) -> Lease | None:
        """Who holds it."""
        return self.held if self.state == "leased" else None


@dataclass(eq=False)
class Job:
    id: UUID
    target: int
    rank: int
    told: bool
    state: str = "receiving"
    began: bool = False
    inputs: list[str] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    cached: int = 0
    computed: int = 0
    errors: dict[int, str] = field(default_factory=dict)
    in_row: int = 0
    overdue: bool = False
    retried: bool = False
    retry_of: "Job | None" = None

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    @property
    def goes_on(self) -> bool:
        return self.state in ("queued", "running", "paused")

    def end(self, state: str) -> None:
        self.state = state
        for shard in self.shards:
            if shard.state in ("queued", "leased"):
                shard.state = "cancelled"


class States(RuleBasedStateMachine):
    """Each rule does one thing to the database and to the model; after each the two are compared."""

    database: Database
    ledger: Ledger
    targets: list[int]
    endpoint: int

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[Job] = []
        self.results: dict[tuple[int, int], UUID] = {}
        """By target and input: the shard that computed it."""
        self.leases: list[tuple[Shard, Lease]] = []
        """Every lease that there ever was."""
        self.said: dict[tuple[UUID, int], str] = {}

    @initialize(priorities=st.lists(st.sampled_from(Priority), min_size=1, max_size=2))
    def begin(self, priorities: list[Priority]) -> None:
        self.ledger.empty()
        for priority in priorities:
            self.open(0, priority, told=True)
            job = self.jobs[-1]
            job.inputs = PAYLOADS[:8]
            append(self.database, job.id, as_lines(job.inputs))
            seal(self.database, job.id, job.target, per_shard=3)
            self._sealed(job)

    # Submission

    @rule(target_=st.integers(0, 1), priority=st.sampled_from(Priority), told=st.booleans())
    def open(self, target_: int, priority: Priority, told: bool) -> None:
        listener = jobs.Listener("https://example.org/", self.endpoint, (50,)) if told else None
        with self.database.transaction() as connection:
            job_id = jobs.open_job(
                connection,
                target_id=self.targets[target_],
                pool="default",
                priority=priority,
                metadata={},
                listener=listener,
            )
        self.jobs.append(Job(job_id, self.targets[target_], priority.rank, told))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), payloads=st.lists(st.sampled_from(PAYLOADS), min_size=1, max_size=8))
    def append(self, data: st.DataObject, payloads: list[str]) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        lines = as_lines(payloads, start=len(job.inputs))
        if job.state == "receiving":
            append(self.database, job.id, lines)
            job.inputs += payloads
        else:
            self.refused(WrongState, lambda: append(self.database, job.id, lines))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), per_shard=st.integers(1, 6), expires=st.booleans())
    def seal(self, data: st.DataObject, per_shard: int, expires: bool) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        how: dict[str, Any] = {"per_shard": per_shard, "expires_in": MINUTE if expires else None}
        if job.state != "receiving":
            self.refused(WrongState, lambda: seal(self.database, job.id, job.target, **how))
        elif job.inputs:
            seal(self.database, job.id, job.target, **how)
            self._sealed(job)

    def _sealed(self, job: Job) -> None:
        wanted = {row[0] for row in query(self.database, "SELECT input_id FROM items WHERE job_id = :id", id=job.id)}
        rows = query(self.database, "SELECT id, input_ids FROM shards WHERE job_id = :id ORDER BY ordinal", id=job.id)
        job.shards = [Shard(row[0], job, row[1]) for row in rows]
        missing = {input_id for input_id in wanted if (job.target, input_id) not in self.results}
        assert sorted(i for shard in job.shards for i in shard.input_ids) == sorted(missing)
        job.cached = len(wanted) - len(missing)
        job.state = "queued" if missing else "succeeded"
        job.overdue = False  # its time counts from now

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        with self.database.transaction() as connection:
            gone = jobs.discard(connection, job.id)
        assert gone is (job.state == "receiving")
        if gone:
            self.jobs = [other for other in self.jobs if other is not job]
            if job.retry_of is not None:
                job.retry_of.retried = False

    # Work

    @rule(worker=st.sampled_from(WORKERS), busy=st.booleans(), loads=st.booleans(), lowest=st.sampled_from(Priority))
    def claim(self, worker: str, busy: bool, loads: bool, lowest: Priority) -> None:
        self._claim(worker, not busy, not loads, lowest)

    @rule(worker=st.sampled_from(WORKERS), count=st.integers(1, 4), loads=st.booleans())
    def claim_what_there_is(self, worker: str, count: int, loads: bool) -> None:
        for _ in range(count):
            self._claim(worker, True, not loads, Priority.BULK)

    def _claim(self, worker: str, idle: bool, loaded: bool, lowest: Priority) -> None:
        models = [row[0] for row in query(self.database, "SELECT id FROM models")] if loaded else []
        capacity = Capacity(loaded=models, idle=idle)
        with self.database.transaction() as connection:
            lease = claims.claim(
                connection, pool="default", worker=worker, lease=MINUTE, lowest=lowest, capacity=capacity
            )
        ready = [shard for job in self.jobs for shard in job.shards if self._claimable(shard, lowest.rank, idle)]
        if lease is None:
            # A process that is busy leaves the way free for a shard that has to run alone.
            assert not ready or (not idle and any(s.alone for job in self.jobs for s in job.shards))
            return
        (shard,) = [shard for shard in ready if shard.id == lease.shard_id]
        assert shard.job.rank == min(other.job.rank for other in ready), "something more urgent could be claimed"
        assert lease.input_ids == shard.input_ids
        shard.state, shard.held, shard.worker = "leased", lease, worker
        shard.attempt += 1
        shard.loading = not loaded
        shard.resting = False
        shard.job.state, shard.job.began = "running", True
        assert (lease.attempt, lease.alone, lease.loading) == (shard.attempt, shard.alone, shard.loading)
        assert lease.token not in {other.token for _, other in self.leases}
        self.leases.append((shard, lease))

    def _claimable(self, shard: Shard, lowest: int, idle: bool) -> bool:
        job = shard.job
        return (
            job.state in ("queued", "running")
            and not job.overdue
            and job.rank <= lowest
            and shard.state == "queued"
            and not shard.resting
            and (idle or not shard.alone)
            and not any(
                twin.state == "leased" and twin.input_ids[0] == shard.input_ids[0]
                for other in self.jobs
                if other is not job and other.target == job.target
                for twin in other.shards
            )
        )

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        """Results are facts: whoever holds a lease, or held one, may write them."""
        shard, lease = data.draw(st.sampled_from(self.leases))
        some = data.draw(st.lists(st.sampled_from(lease.input_ids), unique=True))
        new = store(self.database, lease.target_id, lease.shard_id, some) if some else 0
        assert new == len([i for i in some if (lease.target_id, i) not in self.results])
        self._stored(lease.target_id, some, shard.id)

    def _stored(self, target_id: int, input_ids: list[int], shard_id: UUID) -> None:
        for input_id in input_ids:
            self.results.setdefault((target_id, input_id), shard_id)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), code=st.sampled_from(["engine_error", "too_long"]))
    def close(self, data: st.DataObject, code: str) -> None:
        shard, lease = data.draw(st.sampled_from(self.leases))
        self._close(shard, lease, data.draw(st.lists(st.sampled_from(lease.input_ids), unique=True, max_size=2)), code)

    @precondition(lambda self: any(self._woke_up_late(*held) for held in self.leases))
    @rule(data=st.data(), failing=st.integers(0, 1))
    def close_what_another_holds(self, data: st.DataObject, failing: int) -> None:
        shard, lease = data.draw(st.sampled_from([held for held in self.leases if self._woke_up_late(*held)]))
        self._close(shard, lease, lease.input_ids[:failing], "engine_error")

    def _woke_up_late(self, shard: Shard, lease: Lease) -> bool:
        return shard.lease not in (None, lease)

    @rule(count=st.integers(1, 8), failing=st.integers(0, 2))
    def work(self, count: int, failing: int) -> None:
        """What is held is closed, and what there is then is claimed and closed; the last inputs of each fail."""
        for _ in range(count):
            for shard, lease in self.leases:
                if self._holds(shard, lease):
                    self._close(shard, lease, lease.input_ids[len(lease.input_ids) - failing :], "engine_error")
            self._claim(WORKERS[0], True, True, Priority.BULK)

    def _close(self, shard: Shard, lease: Lease, failing: list[int], code: str) -> None:
        errors = {input_id: ItemFailed(code, "no") for input_id in failing}
        good = [input_id for input_id in lease.input_ids if input_id not in errors]
        if good:
            store(self.database, lease.target_id, lease.shard_id, good)
            self._stored(lease.target_id, good, shard.id)

        def close() -> bool:
            with self.database.transaction() as connection:
                return shards.close(connection, lease, ShardOutcome(errors))

        if not self._holds(shard, lease):
            self.refused(LeaseLost, close)
            return
        shard.state = "done"
        faults = len(failing) if code == "engine_error" else 0
        self._count(shard, lease.input_ids, dict.fromkeys(failing, code), faults)
        assert close() is (shard.job.state == "succeeded")

    def _holds(self, shard: Shard, lease: Lease) -> bool:
        return shard.lease is lease

    def _count(self, shard: Shard, input_ids: list[int], errors: dict[int, str], faults: int) -> None:
        """What a job says once inputs of a shard have been dealt with."""
        job = shard.job
        mine = {other.id for other in job.shards if other.state == "split"} | {shard.id}
        found = [self.results[job.target, i] for i in input_ids if i not in errors and (job.target, i) in self.results]
        computed = sum(shard_id in mine for shard_id in found)
        job.computed += computed
        job.cached += len(found) - computed
        job.errors |= errors
        job.in_row = 0 if computed else job.in_row + faults
        if not any(other.state in ("queued", "leased") for other in job.shards) and job.state in ("running", "paused"):
            job.end("succeeded")
        elif errors and job.in_row >= counting.BREAKER and job.state == "running":
            job.state = "paused"

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), rests=st.booleans())
    def release(self, data: st.DataObject, rests: bool) -> None:
        shard, lease = data.draw(st.sampled_from(self.leases))
        holds = self._holds(shard, lease)

        def release() -> int:
            with self.database.transaction() as connection:
                return shards.release(connection, [lease.token], MINUTE if rests else None)

        if not holds:
            assert self.unchanged(release) == 0
            return
        assert release() == 1
        shard.state, shard.resting = "queued", rests
        shard.attempt -= not rests

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        some = data.draw(st.lists(st.sampled_from(self.leases), min_size=1, max_size=4))
        held = {lease.token for shard, lease in some if self._holds(shard, lease)}
        stale = [lease.token for shard, lease in some if not self._holds(shard, lease)]

        def renew(tokens: list[UUID]) -> set[UUID]:
            with self.database.transaction() as connection:
                valid = shards.valid(connection, tokens)
                assert shards.renew(connection, tokens, timedelta(hours=1)) == valid
                return valid

        assert renew([lease.token for _, lease in some]) == held
        assert self.unchanged(lambda: renew(stale)) == set()

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        shard, lease = data.draw(st.sampled_from(self.leases))

        def loaded() -> None:
            with self.database.transaction() as connection:
                shards.loaded(connection, lease)

        if self._holds(shard, lease):
            loaded()
            shard.loading = False
        else:
            self.unchanged(loaded)

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

    def refused(self, error: type[Exception], act: Any) -> None:
        def attempt() -> None:
            with pytest.raises(error):
                act()

        self.unchanged(attempt)

    def unchanged(self, act: Any) -> Any:
        before = self.ledger.everything()
        result = act()
        assert self.ledger.everything() == before
        return result

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
