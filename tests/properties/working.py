"""The part of the state machine that submits and works; the rest goes wrong, controls, and compares."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from contracts.errors import ItemFailed, LeaseLost, WrongState
from contracts.states import Priority
from storage import claims, counting, jobs, shards
from storage.claims import Capacity
from storage.counting import ShardOutcome
from storage.database import Database
from storage.shards import Lease
from tests.jobs import MINUTE, append, as_lines, query, seal, store
from tests.properties.ledger import Ledger
from tests.properties.modelled import Job, Shard

PAYLOADS = [f"{'x' * (size * 7)} {number}" for size in range(4) for number in range(3)]
"""Few, so that jobs share inputs and results are found again."""
WORKERS = ["host:1", "host:2"]


class Working(RuleBasedStateMachine):
    """Jobs are submitted, and shards of them claimed, closed and given back; the model is told of each."""

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
