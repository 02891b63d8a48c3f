import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import Connection, event

from contracts.errors import DatabaseUnavailable, ItemFailed
from storage.database import Database
from tests.engines import RowEngine, hold
from tests.jobs import make_target, query
from worker import persister as module
from worker.device import Computed
from worker.engines.base import Output
from worker.persister import Persister
from worker.shards import HeldShard

SECONDS = 10


class Away:
    """A database that does not answer the first so many times."""

    def __init__(self, database: Database, times: float) -> None:
        self._database = database
        self.times = times
        self.asked = threading.Semaphore(0)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        self.asked.release()
        self.times -= 1
        if self.times >= 0:
            raise DatabaseUnavailable("it is away")
        with self._database.transaction() as connection:
            yield connection


def held(target_id: int, ids: list[int]) -> HeldShard:
    return hold(RowEngine(), ids, target=target_id)


def part(shard: HeldShard, ids: list[int], *, last: bool, json: bool = False, failed: tuple[int, ...] = ()) -> Computed:
    good = [i for i in ids if i not in failed]
    outputs: Output = [{"n": i} for i in good] if json else np.array(good, np.float32)[:, None]
    return Computed(
        shard=shard,
        rows=np.flatnonzero(np.isin(shard.input_ids, ids)),
        input_ids=np.array(good, np.int64),
        truncated=np.zeros(len(good), np.bool_),
        outputs=outputs if good else None,
        errors={i: ItemFailed("bad", "") for i in failed},
        last=last,
    )


class Settled:
    """What was settled, with the inputs that were in the database at that moment."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.parts: list[Computed] = []
        self.stored: list[set[int]] = []
        self.told = threading.Semaphore(0)

    def __call__(self, parts: list[Computed]) -> None:
        self.parts += parts
        self.stored.append({row.input_id for row in query(self._database, "SELECT input_id FROM results")})
        self.told.release()

    def wait(self) -> bool:
        return self.told.acquire(timeout=SECONDS)


@contextmanager
def running(database: Any, settled: Settled) -> Iterator[Persister]:
    persister = Persister(database, settled)
    persister.start()
    yield persister
    persister.stop()


@pytest.fixture
def target_id(database: Database) -> int:
    return make_target(database)


@pytest.fixture
def settled(database: Database) -> Settled:
    return Settled(database)


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written because of the time that has passed."""
    monkeypatch.setattr(module, "FLUSH_SECONDS", 3600.0)


@pytest.mark.usefixtures("_patient")
def test_the_last_rows_of_a_shard_are_written_at_once_with_all_that_waits(
    database: Database, target_id: int, settled: Settled
) -> None:
    other_id = make_target(database, "other", task="classify")
    first, second, third = held(target_id, [1, 2, 3]), held(target_id, [4, 5]), held(other_id, [1, 9])
    statements: list[str] = []
    event.listen(database._engine, "commit", lambda _: statements.append("commit"))
    with running(database, settled) as persister:
        persister.put([part(first, [2], last=False), part(second, [4], last=False)])
        persister.put([part(third, [9, 1], last=False, json=True)])
        assert settled.parts == []
        persister.put([part(first, [3, 1], last=True, failed=(1,))])
        assert settled.wait()
        assert len(statements) == 2  # the results, and the look at them here
    rows = query(database, "SELECT target_id, input_id, shard_id, embedding::text, output FROM results ORDER BY 1, 2")
    assert [tuple(row) for row in rows] == [
        (target_id, 2, first.lease.shard_id, "[2]", None),
        (target_id, 3, first.lease.shard_id, "[3]", None),
        (target_id, 4, second.lease.shard_id, "[4]", None),
        (other_id, 1, third.lease.shard_id, None, {"n": 1}),
        (other_id, 9, third.lease.shard_id, None, {"n": 9}),
    ]
    assert settled.stored == [{1, 2, 3, 4, 9}]
    assert [part.shard for part in settled.parts] == [first, second, third, first]


def test_the_rest_is_written_before_long(database: Database, target_id: int, settled: Settled) -> None:
    with running(database, settled) as persister:
        persister.put([part(held(target_id, [1, 2]), [1], last=False)])
        assert settled.wait()
        assert settled.stored == [{1}]


@pytest.mark.usefixtures("_patient")
def test_many_rows_are_written_at_once(database: Database, target_id: int, settled: Settled) -> None:
    ids = list(range(module.FLUSH_ROWS))
    with running(database, settled) as persister:
        shard = held(target_id, [*ids, 10**6])
        persister.put([part(shard, ids[:-1], last=False)])
        assert settled.parts == []
        persister.put([part(shard, ids[-1:], last=False)])
        assert settled.wait()
    assert settled.stored == [set(ids)]


def test_errors_alone_need_no_database(database: Database, target_id: int, settled: Settled) -> None:
    away = Away(database, float("inf"))
    with running(away, settled) as persister:
        persister.put([part(held(target_id, [1]), [1], last=True, failed=(1,))])
        assert settled.wait()
    assert [set(part.errors) for part in settled.parts] == [{1}]


@pytest.mark.usefixtures("_patient")
def test_what_was_taken_is_written_before_the_end(database: Database, target_id: int, settled: Settled) -> None:
    with running(database, settled) as persister:
        persister.put([part(held(target_id, [1, 2]), [1], last=False)])
        persister.put([part(held(target_id, [3, 4]), [3], last=False)])
    assert settled.stored == [{1, 3}]


def test_nothing_is_settled_until_the_database_is_back(database: Database, target_id: int, settled: Settled) -> None:
    away = Away(database, 2)
    with running(away, settled) as persister:
        persister.put([part(held(target_id, [1]), [1], last=True)])
        for _ in range(3):
            assert away.asked.acquire(timeout=SECONDS)
        assert settled.wait()
        persister.put([part(held(target_id, [2]), [2], last=True)])
        assert settled.wait()
    assert settled.stored == [{1}, {1, 2}]


def test_the_end_does_not_wait_for_a_database_that_is_away(
    database: Database, target_id: int, settled: Settled, caplog: pytest.LogCaptureFixture
) -> None:
    away = Away(database, float("inf"))
    with running(away, settled) as persister:
        persister.put([part(held(target_id, [1]), [1], last=True)])
        for _ in range(3):
            assert away.asked.acquire(timeout=SECONDS)
    assert settled.parts == []
    assert "given up: it is away" in caplog.text


def test_what_another_worker_wrote_meanwhile_stays_and_is_settled(
    database: Database, target_id: int, settled: Settled
) -> None:
    with running(database, settled) as persister:
        first, second = held(target_id, [1, 2]), held(target_id, [2, 3])
        for shard in (first, second):
            persister.put([part(shard, shard.input_ids.tolist(), last=True)])
            assert settled.wait()
    rows = query(database, "SELECT input_id, shard_id FROM results ORDER BY 1")
    owners: list[tuple[int, UUID]] = [(row.input_id, row.shard_id) for row in rows]
    assert owners == [(1, first.lease.shard_id), (2, first.lease.shard_id), (3, second.lease.shard_id)]
    assert len(settled.parts) == 2
