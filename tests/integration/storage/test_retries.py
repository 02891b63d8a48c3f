from uuid import UUID

import pytest

from contracts.errors import ItemFailed, NothingToRetry
from contracts.states import Priority
from storage import control, jobs, retries
from storage.database import Database
from tests.jobs import append, as_lines, claimed, execute, finish, make_target, open_job, query, seal

LETTERS = "abcdabef"


@pytest.fixture
def target_id(database: Database) -> int:
    return make_target(database)


def cut_short(database: Database, target_id: int) -> UUID:
    """A cancelled job with outputs for two of its inputs, an error for one, and nothing for three."""
    with database.transaction() as connection:
        job_id = jobs.open_job(
            connection, target_id=target_id, pool="gpus", priority=Priority.BULK, metadata={"night": 7}
        )
    append(database, job_id, as_lines(LETTERS, custom_ids=[f"id-{number}" for number in range(8)]))
    seal(database, job_id, target_id, per_shard=3)
    lease = claimed(database, pool="gpus")
    finish(database, lease, {lease.input_ids[0]: ItemFailed("bad", "it is")})
    with database.transaction() as connection:
        control.cancel(connection, job_id)
    return job_id


def test_items_without_an_output_keep_their_order_and_ids(database: Database, target_id: int) -> None:
    job_id = cut_short(database, target_id)
    good = {row.input_id for row in query(database, "SELECT input_id FROM results")}
    assert len(good) == 2
    lines = query(database, "SELECT input_id, custom_id FROM items WHERE job_id = :id ORDER BY position", id=job_id)
    with database.transaction() as connection:
        assert retries.find(connection, job_id) is None
        retry_id = retries.receive(connection, job_id, target_id)
    assert query(
        database, "SELECT input_id, custom_id FROM items WHERE job_id = :id ORDER BY position", id=retry_id
    ) == [line for line in lines if line.input_id not in good]
    count = len(lines) - sum(line.input_id in good for line in lines)
    positions = query(database, "SELECT position FROM items WHERE job_id = :id ORDER BY position", id=retry_id)
    assert [row.position for row in positions] == list(range(count))
    with database.transaction() as connection:
        assert retries.find(connection, job_id) == retry_id
        retry = jobs.get(connection, retry_id)
    assert (retry.pool, retry.priority, retry.metadata) == ("gpus", Priority.BULK, {"night": 7})
    assert (retry.retry_of, retry.counts.items, retry.expires_at) == (job_id, count, None)


def test_who_hears_of_the_job_hears_of_its_retry(database: Database, target_id: int) -> None:
    job_id = cut_short(database, target_id)
    [(endpoint_id,)] = query(
        database, "INSERT INTO webhook_endpoints (url, secret) VALUES ('https://a.example/', '') RETURNING id"
    )
    execute(
        database,
        "UPDATE jobs SET endpoint_id = :e, callback_url = :url, progress_at = '{25,75}' WHERE id = :id",
        e=endpoint_id,
        url="https://a.example/?x",
        id=job_id,
    )
    with database.transaction() as connection:
        retry_id = retries.receive(connection, job_id, target_id)
    columns = "endpoint_id, callback_url, progress_at"
    [retry] = query(database, f"SELECT {columns} FROM jobs WHERE id = :id", id=retry_id)
    assert tuple(retry) == (endpoint_id, "https://a.example/?x", [25, 75])


def test_nothing_is_left_of_a_retry_of_nothing(database: Database, target_id: int) -> None:
    job_id = open_job(database, target_id)
    append(database, job_id, as_lines("a"))
    seal(database, job_id, target_id)
    finish(database, claimed(database))
    with pytest.raises(NothingToRetry, match=str(job_id)), database.transaction() as connection:
        retries.receive(connection, job_id, target_id)
    assert query(database, "SELECT count(*) FROM jobs") == [(1,)]
