import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from contracts.errors import ItemFailed, JobNotFound
from contracts.names import Task
from storage import pages, results
from storage.database import Database
from storage.pages import Page
from tests.jobs import claimed, execute, finish, make_target, query, store, submit

RANDOM = np.random.default_rng(7)
EDGES = np.array(
    [[0.0, -0.0, 1e-45, 3.4028235e38], [-3.4028235e38, 1 / 3, 1e-38, -1.0], [6e-8, 65504.0, -65504.0, 0.1]], np.float32
)


@pytest.fixture
def target_id(database: Database) -> int:
    return make_target(database)


def ids_of(database: Database, job_id: UUID) -> list[int]:
    rows = query(database, "SELECT input_id FROM items WHERE job_id = :id ORDER BY position", id=job_id)
    return [row.input_id for row in rows]


def page(
    database: Database, job_id: UUID, target_id: int, column: str = "embedding", start: int = 0, stop: int = 2**62
) -> Page:
    with database.transaction() as connection:
        return pages.read(connection, job_id=job_id, target_id=target_id, column=column, start=start, stop=stop)


def dimensions(database: Database, job_id: UUID, target_id: int, column: str) -> int | None:
    with database.transaction() as connection:
        return pages.dimensions(connection, job_id=job_id, target_id=target_id, column=column)


def vectors(rows: int, columns: int, dtype: Any = np.float32) -> NDArray[Any]:
    return RANDOM.standard_normal((rows, columns)).astype(dtype)


@pytest.mark.parametrize(
    ("column", "outputs", "width"),
    [
        ("embedding", EDGES, 4),
        ("embedding", vectors(3, 1), 1),
        ("embedding", vectors(1, 16_000), 16_000),
        ("embedding", np.asfortranarray(vectors(300, 7)), 7),
        ("embedding", vectors(5000, 384), 384),
        ("embedding_half", EDGES[2:].astype(np.float16), 4),
        ("embedding_half", vectors(300, 5, np.float16), 5),
        ("embedding_bits", RANDOM.integers(0, 256, (300, 3), np.uint8), 3),
        ("embedding_bits", np.array([[0], [255], [128], [1]], np.uint8), 1),
    ],
)
def test_vectors_come_back_as_they_were(
    database: Database, target_id: int, column: str, outputs: NDArray[Any], width: int
) -> None:
    job_id = submit(database, target_id, [f"{i} {'x' * (i % 7)}" for i in range(len(outputs))], per_shard=5000)
    ids = ids_of(database, job_id)
    # Written in whatever order, as shards and micro-batches have it.
    order = RANDOM.permutation(len(ids))
    written = store(database, target_id, uuid4(), [ids[i] for i in order], outputs=outputs[order])
    assert written == len(ids)
    found = page(database, job_id, target_id, column)
    assert isinstance(found.outputs, np.ndarray)
    assert found.outputs.dtype == outputs.dtype
    assert found.outputs.dtype.isnative
    assert found.outputs.tobytes() == outputs.tobytes()  # to the bit: -0.0 is not 0.0
    assert found.positions.tolist() == list(range(len(ids)))
    assert found.present.all()
    assert dimensions(database, job_id, target_id, column) == width


JSON_OUTPUTS: list[Any] = [
    [{"label": "positive", "score": 0.1 + 0.2}, {"label": "ü \" \\ '\n\U0001f99c", "score": 5e-324}],
    {"text": "x" * 100_000, "tokens": [1, 2, 2**63 - 1], "done": True, "none": None},
    "a text",
    "",
    -1.7976931348623157e308,
    0.5000000000000001,
    [],
    {},
    None,
    False,
]


def test_json_comes_back_as_it_was(database: Database) -> None:
    target_id = make_target(database, task="classify")
    job_id = submit(database, target_id, [f"{i}" for i in range(len(JSON_OUTPUTS))])
    ids = ids_of(database, job_id)
    store(database, target_id, uuid4(), ids[::-1], outputs=JSON_OUTPUTS[::-1])
    found = page(database, job_id, target_id, "output")
    assert [orjson.loads(value or "") for value in found.outputs] == JSON_OUTPUTS
    assert found.present.all()
    assert dimensions(database, job_id, target_id, "output") is None
    # It is jsonb: a user can look inside.
    [row] = query(database, "SELECT output -> 0 ->> 'label' AS label FROM results WHERE input_id = :id", id=ids[0])
    assert row.label == "positive"


def test_nothing_at_all_can_be_written(database: Database, target_id: int) -> None:
    assert store(database, target_id, uuid4(), [], outputs=np.empty((0, 4), np.float32)) == 0
    assert store(database, target_id, uuid4(), [], outputs=[]) == 0


def test_outputs_that_no_column_takes_are_refused(database: Database, target_id: int) -> None:
    with pytest.raises(TypeError, match="float64"):
        store(database, target_id, uuid4(), [1], outputs=np.zeros((1, 4)))


@pytest.mark.parametrize("json", [False, True])
def test_the_first_writer_wins(database: Database, target_id: int, json: bool) -> None:
    first, second = uuid4(), uuid4()
    old: Any = ["old"] * 3 if json else np.full((3, 2), 1, np.float32)
    new: Any = ["new"] * 4 if json else np.full((4, 2), 2, np.float32)
    assert store(database, target_id, first, [5, 7, 6], outputs=old, truncated=[7]) == 3
    assert store(database, target_id, second, [8, 7, 6, 5], outputs=new) == 1
    assert store(database, target_id, second, [8, 8, 9, 9], outputs=new) == 1
    rows = query(database, "SELECT input_id, shard_id, truncated, embedding::text, output FROM results ORDER BY 1")
    assert [(row.input_id, row.shard_id, row.truncated) for row in rows] == [
        (5, first, False),
        (6, first, False),
        (7, first, True),
        (8, second, False),
        (9, second, False),
    ]
    values = [row.output if json else row.embedding for row in rows]
    assert values == (["old"] * 3 + ["new"] * 2 if json else ["[1,1]"] * 3 + ["[2,2]"] * 2)
    # Another target's results are its own.
    assert store(database, make_target(database, "other"), second, [5, 6, 7]) == 3


def test_those_who_write_the_same_at_once_wait_for_one_another_and_no_longer(
    database: Database, target_id: int
) -> None:
    barrier = threading.Barrier(4)

    def write(number: int) -> int:
        ids = list(range(1000))[:: -1 if number % 2 else 1]
        barrier.wait(30)
        return store(database, target_id, UUID(int=number), ids)

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(write, range(4))) == 1000
    [(count, wrong)] = query(
        database, "SELECT count(*), count(*) FILTER (WHERE embedding <> ('[' || input_id || ']')::vector) FROM results"
    )
    assert (count, wrong) == (1000, 0)


def test_known_are_those_with_a_result_for_the_target(database: Database, target_id: int) -> None:
    store(database, target_id, uuid4(), [1, 2, 2**62])
    store(database, make_target(database, "other"), uuid4(), [3])
    with database.transaction() as connection:
        assert results.known(connection, target_id, [1, 3, 4, 2**62]) == {1, 2**62}
        assert results.known(connection, target_id, []) == set()


@pytest.mark.parametrize("json", [False, True])
def test_a_page_says_what_became_of_each_item(database: Database, json: bool) -> None:
    target_id = make_target(database, task="classify" if json else "embed")
    column = "output" if json else "embedding"
    submit(database, target_id, "a")
    theirs = claimed(database)
    outputs: Any = [["A"]] if json else np.array([[1, 1]], np.float32)
    store(database, target_id, theirs.shard_id, theirs.input_ids, outputs=outputs, truncated=theirs.input_ids)
    job_id = submit(database, target_id, "abcbd", per_shard=1)
    ids = ids_of(database, job_id)
    # b is computed here, c fails, d waits.
    for expected in (theirs, *(claimed(database) for _ in range(3))):
        outputs = [["B"]] if json else np.array([[2, 2]], np.float32)
        if expected.input_ids == [ids[1]]:
            store(database, target_id, expected.shard_id, expected.input_ids, outputs=outputs)
        if expected.input_ids == [ids[2]]:
            finish(database, expected, {ids[2]: ItemFailed("too_long", "no 'more' than 8")})
    found = page(database, job_id, target_id, column)
    assert found.positions.tolist() == [0, 1, 2, 3, 4]
    assert found.custom_ids == [None] * 5
    assert found.present.tolist() == [True, True, False, True, False]
    assert found.cached.tolist() == [True, False, False, False, False]
    assert found.truncated.tolist() == [True, False, False, False, False]
    assert found.errors == [None, None, ("too_long", "no 'more' than 8"), None, None]
    if json:
        assert found.outputs == ['["A"]', '["B"]', None, '["B"]', None]
    else:
        assert np.asarray(found.outputs).tolist() == [[1, 1], [2, 2], [0, 0], [2, 2], [0, 0]]


def test_an_error_of_the_job_beats_a_result_of_another(database: Database, target_id: int) -> None:
    first = submit(database, target_id, "ab")
    lease = claimed(database)
    finish(database, lease, {lease.input_ids[0]: ItemFailed("engine_error", "fell over")})
    # Another job computes what failed in the first, and is cut to the model's limit.
    submit(database, target_id, "ab")
    again = claimed(database)
    finish(database, again, truncated=again.input_ids)
    failed = ids_of(database, first).index(lease.input_ids[0])
    found = page(database, first, target_id)
    assert found.present[failed] == False  # noqa: E712 - numpy's
    assert found.errors[failed] == ("engine_error", "fell over")
    # What counters say of it, the page says as well.
    assert not found.cached[failed]
    assert not found.truncated[failed]
    assert found.present.sum() == 1


def test_pages_are_cut_by_position(database: Database, target_id: int) -> None:
    job_id = submit(database, target_id, [f"{i}" for i in range(10)])
    execute(database, "UPDATE items SET custom_id = 'number ' || position WHERE position % 2 = 0")
    store(database, target_id, uuid4(), ids_of(database, job_id))
    found = page(database, job_id, target_id, start=3, stop=7)
    assert found.positions.tolist() == [3, 4, 5, 6]
    assert found.custom_ids == [None, "number 4", None, "number 6"]
    assert np.asarray(found.outputs)[:, 0].tolist() == ids_of(database, job_id)[3:7]
    # Whoever computed them is not known any more, so it was not this job.
    assert found.cached.all()
    assert page(database, job_id, target_id, start=9, stop=20).positions.tolist() == [9]


@pytest.mark.parametrize("column", ["embedding", "embedding_half", "embedding_bits", "output"])
def test_a_page_may_be_empty_or_without_a_single_output(database: Database, target_id: int, column: str) -> None:
    job_id = submit(database, target_id, "ab")
    nothing = page(database, job_id, target_id, column)
    assert nothing.positions.tolist() == [0, 1]
    assert len(nothing.outputs) == 2
    assert not nothing.present.any()
    assert len(page(database, job_id, target_id, column, start=2).outputs) == 0
    with pytest.raises(JobNotFound):
        page(database, uuid4(), target_id, column)
    assert dimensions(database, job_id, target_id, column) is None


def test_the_column_follows_from_task_and_precision() -> None:
    columns = {
        precision: results.output_column(Task.EMBED, {"precision": precision})
        for precision in ("float32", "float16", "ubinary")
    }
    assert columns == {"float32": "embedding", "float16": "embedding_half", "ubinary": "embedding_bits"}
    assert results.output_column(Task.CLASSIFY, {"top_k": None}) == "output"
