import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage import inputs
from storage.database import Database
from tests.conftest import wait_until
from tests.jobs import append, as_lines, make_target, open_job, query, seal, store


@pytest.fixture
def target_id(database: Database) -> int:
    return make_target(database)


PAYLOADS = [
    1e16,
    10**16,
    -0.0,
    0.0,
    0,
    1.0,
    1,
    True,
    None,
    "",
    "1",
    5e-324,
    1.7976931348623157e308,
    2**64 - 1,
    -(2**63),
    "quotes ' \" backslash \\ \\u0041 \\x41 tab \t newline \n bell \a",
    "日本語 ü 🦜 \u2028 \ufeff \U0010ffff",
    {"a": [1.0, {"": None}], "b": 1, "ü": "\\N"},
    ["\\.", "\\N", "{}"],
    "x" * 5_000_000,
]


def test_payloads_are_kept_to_the_letter(database: Database, target_id: int) -> None:
    job_id = open_job(database, target_id)
    lines = as_lines(PAYLOADS)
    append(database, job_id, lines)
    stored = query(
        database,
        "SELECT payload::text, size, digest FROM items JOIN inputs ON inputs.id = input_id "
        "WHERE job_id = :job_id ORDER BY position",
        job_id=job_id,
    )
    assert len(stored) == len(PAYLOADS)
    for line, row in zip(lines, stored, strict=True):
        assert (row[0].encode(), row[1], row[2]) == (line.payload, len(line.payload), line.digest)


def test_payloads_come_back_in_the_order_of_the_ids(database: Database, target_id: int) -> None:
    append(database, open_job(database, target_id), as_lines(PAYLOADS))
    ids = [row.id for row in query(database, "SELECT input_id AS id FROM items ORDER BY position DESC")]
    with database.transaction() as connection:
        found = inputs.payloads(connection, ids)
        assert inputs.payloads(connection, []) == []
        with pytest.raises(KeyError):
            inputs.payloads(connection, [*ids, 2**62])
    # repr tells 1 from 1.0 and from True, and 0.0 from -0.0.
    assert [repr(value) for value in found] == [repr(value) for value in PAYLOADS[::-1]]


def test_a_payload_is_stored_once(database: Database, target_id: int) -> None:
    first, second = open_job(database, target_id), open_job(database, target_id)
    append(database, first, as_lines(["a", "b", "a"]))
    append(database, first, as_lines(["b", "c"], start=3))
    append(database, second, as_lines(["c", "d", "a"]))
    payloads = query(database, "SELECT payload::text FROM inputs ORDER BY 1")
    assert [row[0] for row in payloads] == ['"a"', '"b"', '"c"', '"d"']
    for job_id, expected in ((first, "ababc"), (second, "cda")):
        rows = query(
            database,
            "SELECT position, payload::text FROM items JOIN inputs ON inputs.id = input_id "
            "WHERE job_id = :job_id ORDER BY position",
            job_id=job_id,
        )
        assert [tuple(row) for row in rows] == [(i, f'"{letter}"') for i, letter in enumerate(expected)]


def test_ids_ascend_with_positions(database: Database, target_id: int) -> None:
    append(database, open_job(database, target_id), as_lines([f"text {i}" for i in range(1000)]))
    ids = [row[0] for row in query(database, "SELECT input_id FROM items ORDER BY position")]
    assert ids == sorted(ids)  # what is read together stands together


def test_a_payload_that_another_submission_stores_meanwhile_is_found(database: Database, target_id: int) -> None:
    first, second = open_job(database, target_id), open_job(database, target_id)
    with ThreadPoolExecutor(1) as thread:
        with database.transaction() as connection:
            inputs.append(connection, first, as_lines(["b", "c"]))
            late = thread.submit(append, database, second, as_lines(["a", "b", "c", "d"]))
            wait_until(lambda: query(database, "SELECT FROM pg_locks WHERE NOT granted"))
        late.result(30)
    ids = {
        job_id: [
            row[0]
            for row in query(database, "SELECT input_id FROM items WHERE job_id = :id ORDER BY position", id=job_id)
        ]
        for job_id in (first, second)
    }
    assert ids[second][1:3] == ids[first]
    assert len(set(ids[second])) == 4


def test_positions_and_custom_ids_are_kept(database: Database, target_id: int) -> None:
    job_id = open_job(database, target_id)
    ids = ["first", None, "ü '\"\\", "first ", "x" * 255]
    append(database, job_id, as_lines("abcab", start=2**40, custom_ids=ids))
    rows = query(database, "SELECT position, custom_id FROM items ORDER BY position")
    assert [tuple(row) for row in rows] == [(2**40 + i, custom_id) for i, custom_id in enumerate(ids)]


def test_a_custom_id_that_stands_twice_is_found(database: Database, target_id: int) -> None:
    job_id, other = open_job(database, target_id), open_job(database, target_id)
    append(database, other, as_lines("ab", custom_ids=["two", "four"]))
    append(database, job_id, as_lines("abcd", custom_ids=[None, "one", None, "two"]))
    with database.transaction() as connection:
        assert inputs.duplicate_custom_id(connection, job_id) is None
    append(database, job_id, as_lines("aa", start=4, custom_ids=["two", "three"]))
    with database.transaction() as connection:
        assert inputs.duplicate_custom_id(connection, job_id) == ("two", 3, 4)


def test_cached_are_those_with_a_result_for_the_target(database: Database, target_id: int) -> None:
    other = make_target(database, "other")
    job_id = open_job(database, target_id)
    lines = as_lines(["a", "b", "c"])
    append(database, job_id, lines)
    ids = [row[0] for row in query(database, "SELECT input_id FROM items ORDER BY position")]
    store(database, target_id, job_id, [ids[1]])
    store(database, other, job_id, [ids[2]])
    digests = [line.digest for line in [*lines, *as_lines(["never seen"])]]
    with database.transaction() as connection:
        assert inputs.cached(connection, target_id, digests) == {lines[1].digest}
        assert inputs.cached(connection, other, digests) == {lines[2].digest}
        assert inputs.cached(connection, target_id, []) == set()


def test_submissions_that_meet_neither_block_one_another_for_good_nor_store_twice(
    database: Database, target_id: int
) -> None:
    # Chunks that have everything in common, in opposite order: unsorted inserts would deadlock here.
    values = [f"text {i}" for i in range(3000)]
    barrier = threading.Barrier(4)

    def run(number: int) -> None:
        job_id = open_job(database, target_id)
        lines = as_lines(values)
        for start in (0, 1500):
            chunk = lines[start : start + 1500]
            barrier.wait(30)
            append(database, job_id, chunk if number % 2 else chunk[::-1])
        seal(database, job_id, target_id)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(4)))
    [(count,)] = query(database, "SELECT count(*) FROM inputs")
    assert count == len(values)
    wrong = query(
        database,
        "SELECT job_id FROM items GROUP BY job_id HAVING count(*) <> 3000 OR count(DISTINCT input_id) <> 3000",
    )
    assert wrong == []
