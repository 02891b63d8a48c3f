"""Which shard is claimed: against a few lines of Python that say the same as the SQL; and by many at once."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import BatchmillError, ItemFailed
from contracts.states import Priority
from storage import control, jobs, retries, sealing, shards
from storage.claims import PATIENCE, Capacity
from storage.counting import ShardOutcome
from storage.database import Database
from storage.rescue import rescue
from storage.shards import Lease
from tests.jobs import MINUTE, claim, execute, finish, make_target, query, store, submit
from tests.properties.ledger import Ledger
from tests.properties.scale import examples

MEMORY = {"small": 10, "large": 100}
TOKENS = 7
LONG_AGO = PATIENCE[0].total_seconds() + 20
JUST_NOW = -600.0
"""In the future, in truth: an example may take its time, and what came just now has still not waited."""


@dataclass
class Job:
    """What the order depends on; times are seconds before now."""

    target: str
    rank: int
    service: int
    age: float
    served: float | None
    state: str
    firsts: list[int]
    """The first input of each of its shards, in their order."""
    alone: list[bool]
    """Whether each must run alone; as long as any list of shards."""
    number: int = 0
    leased: set[int] = field(default_factory=set)


jobs_ = st.lists(
    st.builds(
        Job,
        target=st.sampled_from(sorted(MEMORY)),
        rank=st.sampled_from([1, 1, 1, 0, 2]),
        service=st.sampled_from([0, TOKENS, 2 * TOKENS, 100]),
        age=st.sampled_from([JUST_NOW, 2.0, LONG_AGO, 2 * LONG_AGO]),
        served=st.none() | st.sampled_from([JUST_NOW, 2.0, LONG_AGO]),
        state=st.sampled_from(["queued", "running", "running", "running", "paused", "cancelled", "receiving"]),
        firsts=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
        alone=st.lists(st.sampled_from([False, False, True]), min_size=3, max_size=3) | st.just([False] * 3),
    ),
    min_size=2,
    max_size=6,
)
TOTAL = 60
capacities = st.fixed_dictionaries(
    {
        "loaded": st.sampled_from([{"small", "large"}, {"small"}, {"large"}, set()]),
        "free": st.sampled_from([TOTAL, 50, 0]),
        "vacant": st.sampled_from([TOTAL, 50, 0]),
        "idle": st.booleans(),
        "settled": st.booleans(),
    }
)


def expected(found: list[Job], how: dict[str, Any], lowest: int) -> tuple[Job, int] | None:
    """The job and the place of its shard that are to be claimed."""

    def places_of(job: Job) -> list[int]:
        """Places of the shards that can be claimed, the first one first."""
        if job.state not in ("queued", "running") or job.rank > lowest:
            return []
        computed = {
            other.firsts[place]
            for other in found
            if other is not job and other.target == job.target
            for place in other.leased
        }
        places = [
            place
            for place, first in enumerate(job.firsts)
            if place not in job.leased and first not in computed and (how["idle"] or not job.alone[place])
        ]
        return sorted(places, key=lambda place: (not job.alone[place], place))

    def fits(job: Job) -> bool:
        """Whether its model is in memory or finds room once unused ones have left; a larger one needs all of it."""
        return job.target in how["loaded"] or min(MEMORY[job.target], TOTAL) <= how["free"]

    def starves(job: Job) -> bool:
        """Whether it has waited for its model for so long that another has to leave for it, and nobody else has it."""
        if job.target in how["loaded"] or not (how["settled"] or job.rank == 0):
            return False
        if any(other.leased and other.state == "running" for other in found if other.target == job.target):
            return False
        waited = job.age if job.served is None else job.served
        return waited > PATIENCE[0].total_seconds() * (0.1 if job.rank == 0 else 1)

    def urgency(job: Job) -> tuple[Any, ...]:
        room = job.target in how["loaded"] or min(MEMORY[job.target], TOTAL) <= how["vacant"]
        alone = job.alone[places_of(job)[0]]
        return (job.rank, not alone, not starves(job), not room, job.service, -job.age, job.number)

    ready = [job for job in found if places_of(job) and (fits(job) or starves(job))]
    if not ready:
        return None
    job = min(ready, key=urgency)
    return (job, places_of(job)[0]) if fits(job) else None


@pytest.fixture
def targets(database: Database) -> dict[str, int]:
    return {name: make_target(database, name, memory_bytes=size) for name, size in MEMORY.items()}


_ADD_JOB = """
    INSERT INTO jobs (target_id, pool, state, priority, service, queued_at, served_at, open_shards, finished_at)
    VALUES (:target, 'default', :state, :rank, :service, now() - make_interval(secs => :age),
            now() - make_interval(secs => :served), :shards, NULL)
    RETURNING id
"""
_ADD_SHARD = """
    INSERT INTO shards (job_id, ordinal, state, input_ids, estimated_tokens, alone)
    VALUES (:job, :ordinal, 'queued', ARRAY[CAST(:first AS bigint), 99], :tokens, :alone)
"""


def test_claims_come_in_the_order_of_the_model(database: Database, ledger: Ledger, targets: dict[str, int]) -> None:
    models: dict[str, int] = dict(query(database, "SELECT name, id FROM models"))

    @settings(max_examples=examples(0.2, 0.1))
    @given(jobs_, st.lists(st.tuples(capacities, st.sampled_from([2, 2, 2, 1, 0])), min_size=3, max_size=10))
    def follow(found: list[Job], calls: list[tuple[dict[str, Any], int]]) -> None:
        ledger.empty()
        ids: dict[UUID, Job] = {}
        for job in found:
            values = {"target": targets[job.target], "state": job.state, "rank": job.rank, "service": job.service}
            values |= {"age": job.age, "served": job.served, "shards": len(job.firsts)}
            (row,) = query(database, _ADD_JOB, **values)
            ids[row[0]] = job
            for ordinal, first in enumerate(job.firsts):
                shard = {"ordinal": ordinal, "first": first, "tokens": TOKENS, "alone": job.alone[ordinal]}
                execute(database, _ADD_SHARD, job=row[0], **shard)
        for number, job_id in enumerate(sorted(ids)):
            ids[job_id].number = number
        for how, lowest in calls:
            capacity = Capacity(
                loaded=[models[name] for name in how["loaded"]],
                free_bytes=how["free"],
                vacant_bytes=how["vacant"],
                total_bytes=TOTAL,
                idle=how["idle"],
                settled=how["settled"],
            )
            lease = claim(database, lowest=Priority.of_rank(lowest), capacity=capacity)
            wanted = expected(found, how, lowest)
            if wanted is None:
                assert lease is None
                continue
            job, place = wanted
            assert lease is not None
            assert (ids[lease.job_id].number, lease.input_ids[0]) == (job.number, job.firsts[place])
            job.leased.add(place)
            job.service += TOKENS
            job.served = 0.0
            job.state = "running"

    follow()


def together(count: int, act: Callable[[int], None]) -> None:
    """Call from so many threads at once; whatever one of them raises, a deadlock say, is raised here."""
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait(30)
        act(number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(run, number) for number in range(count)]:
            done.result(120)


@pytest.fixture
def wide(database_url: str) -> Iterator[Database]:
    """The database, for many threads."""
    with Database(database_url, pool_size=16) as database:
        yield database


def test_no_shard_is_claimed_twice_and_none_is_left(wide: Database) -> None:
    target = make_target(wide)
    for priority in Priority:
        submit(wide, target, [f"{priority} {number}" for number in range(60)], priority=priority, per_shard=2)
    (row,) = query(wide, "SELECT count(*), sum(estimated_tokens) FROM shards")
    leases: list[Lease] = []
    ranks: dict[int, list[int]] = {number: [] for number in range(12)}

    def drain(number: int) -> None:
        while (lease := claim(wide)) is not None:
            leases.append(lease)
            ranks[number].append(lease.priority.rank)

    together(12, drain)
    assert len(leases) == row[0] == 90
    assert max(Counter(lease.shard_id for lease in leases).values()) == 1
    assert len({lease.token for lease in leases}) == row[0]
    # Each saw the more urgent classes end before it began on a lesser one.
    assert all(seen == sorted(seen) for seen in ranks.values())
    assert query(wide, "SELECT sum(service) FROM jobs") == [(row[1],)]


@pytest.mark.timeout(600)
def test_all_at_once_breaks_nothing(wide: Database, ledger: Ledger) -> None:
    """Whatever is done to the same jobs at the same moment: no deadlock, and the rows agree afterwards."""
    target = make_target(wide)
    rounds = examples(0.02, 0.002)
    for round_ in range(rounds):
        ids = [
            submit(wide, target, [f"{(round_ + shared) % 4} {n}" for n in range(40)], per_shard=2)
            for shared in range(4)
        ]
        held: list[Lease] = []
        said: dict[Any, str] = {}

        def act(number: int, ids: list[UUID] = ids, held: list[Lease] = held, round_: int = round_) -> None:
            rng = random.Random(f"{round_} {number}")
            for _ in range(40):
                _do_something(wide, rng, ids, held)

        together(8, act)
        ledger.check()
        said = ledger.outcomes()
        # What is left is finished, and what had ended stays as it was.
        execute(wide, "UPDATE shards SET lease_expires_at = now() - interval '1 second' WHERE state = 'leased'")
        for _ in range(3):
            _finish_what_is_left(wide)
        ledger.check()
        now = ledger.outcomes()
        assert {key: now[key] for key in said} == said
        assert query(wide, "SELECT id FROM jobs WHERE state IN ('queued', 'running', 'paused')") == []


def _finish_what_is_left(database: Database) -> None:
    rescue(database)
    execute(database, "UPDATE shards SET not_before = NULL WHERE not_before IS NOT NULL")
    with database.transaction() as connection:
        control.expire_due(connection)
    # In a transaction of its own: a paused job may have just expired.
    with database.transaction() as connection:
        for (job_id,) in query(database, "SELECT id FROM jobs WHERE state = 'paused'"):
            control.resume(connection, job_id)
    while (lease := claim(database)) is not None:
        finish(database, lease)


def _do_something(database: Database, rng: random.Random, ids: list[UUID], held: list[Lease]) -> None:
    lease = rng.choice(held) if held and rng.random() < 0.5 else None
    job_id = rng.choice(ids)
    what = rng.choices(
        ["claim", "store", "close", "renew", "release", "rescue", "pause", "resume", "cancel", "expire", "retry"],
        [30, 10, 30, 10, 3, 6, 3, 6, 0.3, 0.3, 1],
    )[0]
    try:
        if what == "claim":
            found = claim(database, capacity=Capacity(idle=rng.random() < 0.7))
            if found is not None:
                held.append(found)
        elif what == "rescue":
            if lease is not None:
                execute(
                    database,
                    "UPDATE shards SET lease_expires_at = now() - interval '1 second' WHERE token = :token",
                    token=lease.token,
                )
            rescue(database)
            execute(database, "UPDATE shards SET not_before = NULL WHERE id = (SELECT id FROM shards LIMIT 1)")
        elif what == "retry":
            with database.transaction() as connection:
                if jobs.lock(connection, job_id).terminal and retries.find(connection, job_id) is None:
                    target_id = jobs.target_id(connection, job_id)
                    retry = retries.receive(connection, job_id, target_id)
                    sealing.seal(connection, retry, target_id, shard_tokens=10**6, shard_inputs=2)
        elif what in ("pause", "resume", "cancel"):
            with database.transaction() as connection:
                {"pause": control.pause, "resume": control.resume, "cancel": control.cancel}[what](connection, job_id)
        elif what == "expire":
            execute(database, "UPDATE jobs SET expires_at = now() WHERE id = :id", id=job_id)
            with database.transaction() as connection:
                control.expire_due(connection)
        elif lease is not None and what == "store":
            store(database, lease.target_id, lease.shard_id, lease.input_ids)
        elif lease is not None and what == "close":
            failing = lease.input_ids[: rng.randrange(2)]
            store(database, lease.target_id, lease.shard_id, lease.input_ids)
            with database.transaction() as connection:
                errors = {input_id: ItemFailed("engine_error", "no") for input_id in failing}
                shards.close(connection, lease, ShardOutcome(errors))
        elif lease is not None:
            with database.transaction() as connection:
                tokens = [other.token for other in rng.sample(held, min(len(held), 5))]
                if what == "renew":
                    shards.renew(connection, tokens, MINUTE)
                else:
                    shards.release(connection, tokens[:2])
    except BatchmillError:
        pass  # typed, so it said what is wrong; the rows tell whether it changed something all the same
