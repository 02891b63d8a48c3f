"""Which rows of two jobs differ, and samples of what came of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from contracts.errors import ItemFailed
from contracts.names import Task
from contracts.params import parse_params
from storage import comparing, inputs, jobs, models, shards
from storage.comparing import JobKey
from storage.counting import ShardOutcome
from storage.database import Database
from storage.results import Outputs
from tests.jobs import append, as_lines, claim, make_model, make_target, open_job, query, seal, store

Give = Callable[[list[Any]], Outputs]
Rows = Mapping[str, Any] | Sequence[Any]


def one_hot(payloads: list[Any]) -> Outputs:
    """The vector of a text is along the axis of its length."""
    vectors = np.zeros((len(payloads), 16), np.float32)
    vectors[np.arange(len(payloads)), [len(payload) for payload in payloads]] = 1
    return vectors


def labels(payloads: list[Any]) -> Outputs:
    return [[{"label": p["label"], "score": p["score"]}, {"label": "other", "score": 0.0}] for p in payloads]


def target(database: Database, name: str, **params: Any) -> int:
    with database.transaction() as connection:
        return models.make_target(connection, make_model(connection, name), parse_params(Task.EMBED, params))


def score(
    database: Database, target_id: int, rows: Rows, give: Give = one_hot, *, failing: Sequence[Any] = ()
) -> JobKey:
    """A job of rows, by their ids or without, computed."""
    job_id = open_job(database, target_id)
    ids = list(rows) if isinstance(rows, Mapping) else None
    payloads = list(rows.values()) if isinstance(rows, Mapping) else rows
    append(database, job_id, as_lines(payloads, custom_ids=ids))
    seal(database, job_id, target_id)
    while lease := claim(database):
        with database.transaction() as connection:
            found = dict(zip(lease.input_ids, inputs.payloads(connection, lease.input_ids), strict=True))
        good = {key: payload for key, payload in found.items() if payload not in failing}
        errors = {key: ItemFailed("broken", "it does not work") for key in found if key not in good}
        if good:
            store(database, target_id, lease.shard_id, list(good), outputs=give(list(good.values())))
        with database.transaction() as connection:
            shards.close(connection, lease, ShardOutcome(errors))
    return key_of(database, job_id, target_id)


def key_of(database: Database, job_id: UUID, target_id: int) -> JobKey:
    with database.transaction() as connection:
        return JobKey(job_id, target_id, jobs.get(connection, job_id).counts.items)


def changed(database: Database, now: JobKey, before: JobKey) -> tuple[int, int, int]:
    with database.transaction() as connection:
        return comparing.count_changes(connection, now.job_id, before.job_id)


def distances(
    database: Database, now: JobKey, before: JobKey, columns: tuple[str, str] = ("embedding", "embedding")
) -> tuple[list[float], int]:
    with database.transaction() as connection:
        found = comparing.sample_distances(connection, now, columns[0], before, columns[1])
    return sorted(found.changed.round(4).tolist()), found.unchanged


def test_rows_with_ids_are_compared_by_them(database: Database) -> None:
    one = make_target(database)
    before = score(database, one, {"a": "1", "b": "22", "c": "333", "d": "1"})
    now = score(database, one, {"d": "1", "b": "4444", "e": "1", "f": "55555", "a": "1"})
    assert changed(database, now, before) == (2, 1, 1)
    assert changed(database, before, now) == (1, 1, 2)
    assert changed(database, now, now) == (0, 0, 0)


def test_rows_without_ids_are_compared_by_inputs_wherever_they_stand(database: Database) -> None:
    one = make_target(database)
    before = score(database, one, ["1", "22", "22", "333", "333"])
    now = score(database, one, ["333", "1", "1", "1", "4444", "4444", "55555"])
    # Rows are counted: three hold inputs that were not there, and both rows of "22" are gone.
    assert changed(database, now, before) == (3, 0, 2)


def test_of_some_rows_with_ids_and_some_without_each_is_compared_with_its_like(database: Database) -> None:
    one = make_target(database)
    job_ids = []
    for ids, payloads in ((["a", None, None], ["1", "22", "333"]), ([None, "a", "b"], ["22", "1", "333"])):
        job_id = open_job(database, one)
        append(database, job_id, as_lines(payloads, custom_ids=ids))
        seal(database, job_id, one)
        job_ids.append(key_of(database, job_id, one))
    assert changed(database, job_ids[1], job_ids[0]) == (1, 0, 1)
    # A source that has ids from one night on has nothing in common with the one before.
    assert changed(database, score(database, one, {"x": "22"}), job_ids[0]) == (1, 0, 3)


def test_rows_that_failed_are_counted_and_not_their_inputs(database: Database) -> None:
    one = make_target(database)
    job = score(database, one, ["bad", "bad", "good", "worse"], failing=["bad", "worse"])
    with database.transaction() as connection:
        assert comparing.count_failed_rows(connection, job.job_id) == 3
        assert jobs.get(connection, job.job_id).counts.failed == 2


def test_a_held_job_is_there(database: Database) -> None:
    job = score(database, make_target(database), ["1"])
    with database.transaction() as connection:
        assert comparing.hold(connection, job.job_id)
        assert query(database, "SELECT 1 FROM jobs WHERE id = :id FOR UPDATE SKIP LOCKED", id=job.job_id) == []
        assert not comparing.hold(connection, UUID(int=1))


def test_numbers_of_a_sample(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_target(database, task="classify")
    rows = [{"label": "ab"[i % 2], "score": i / 100} for i in range(10)]
    job = score(database, one, rows, labels, failing=rows[2:4])
    with database.transaction() as connection:
        found = comparing.sample_numbers(connection, Task.CLASSIFY, job)
        assert sorted(found.values.tolist()) == [0.0, 0.01, *(i / 100 for i in range(4, 10))]
        assert sorted(map(str, found.labels)) == ["a"] * 4 + ["b"] * 4
        assert not found.single
        monkeypatch.setattr(comparing, "SAMPLED_ROWS", 4)
        assert job.stride == 3
        assert sorted(comparing.sample_numbers(connection, Task.CLASSIFY, job).values.tolist()) == [0.0, 0.06, 0.09]


def test_the_likelihood_of_a_token(database: Database) -> None:
    one = make_target(database, task="score")
    give: Give = lambda payloads: [{"log_likelihood": -3.0 * len(p), "tokens": len(p) - 1} for p in payloads]  # noqa: E731
    job = score(database, one, ["1", "22", "333"], give)
    with database.transaction() as connection:
        found = comparing.sample_numbers(connection, Task.SCORE, job)
    assert sorted(found.values.tolist()) == [-6.0, -4.5]  # of the first no token is left


@pytest.mark.parametrize("outputs", [{"label": "a"}, [], [{"label": "a", "score": "0.7"}], "text", [1.0], None])
def test_outputs_of_another_form_give_no_number(database: Database, outputs: Any) -> None:
    one = make_target(database, task="classify")
    job = score(database, one, ["1"], lambda _: [outputs])
    with database.transaction() as connection:
        for task in comparing.NUMERIC:
            found = comparing.sample_numbers(connection, task, job)
            assert (len(found.values), found.labels) == (0, [])


def test_embeddings_of_the_same_id_before_and_now(database: Database) -> None:
    one = make_target(database)
    before = score(database, one, {"a": "1", "b": "22", "c": "333", "x": "x"}, failing=["x"])
    now = score(database, one, {"c": "1", "b": "22", "a": "1", "new": "4444", "x": "x"}, failing=["x"])
    assert distances(database, now, before) == ([1.0], 2)
    assert distances(database, now, now) == ([], 4)


def test_embeddings_of_another_target(database: Database) -> None:
    one, two = target(database, "one"), target(database, "two")
    before = score(database, one, {"a": "1", "b": "22"})
    tilted: Give = lambda payloads: np.array(one_hot(payloads)) + np.float32(0.25)  # noqa: E731
    cosine = 1.25 / np.sqrt(1.25**2 + 15 * 0.25**2)
    now = score(database, two, {"a": "1", "b": "22"}, tilted)
    assert distances(database, now, before) == ([round(1 - cosine, 4)] * 2, 0)


def test_embeddings_without_ids_are_those_of_the_same_input(database: Database) -> None:
    one, two = target(database, "one"), target(database, "two")
    before = score(database, one, ["1", "22", "22"])
    assert distances(database, score(database, one, ["22", "1", "1", "333"]), before) == ([], 3)
    assert distances(database, score(database, two, ["22", "1", "1", "333"]), before) == ([0.0] * 3, 0)


def test_half_floats_beside_floats(database: Database) -> None:
    one, two = target(database, "one"), target(database, "two", precision="float16")
    before = score(database, one, {"a": "1", "b": "22"})
    now = score(database, two, {"a": "22", "b": "22"}, lambda payloads: np.array(one_hot(payloads)).astype(np.float16))
    assert distances(database, now, before, ("embedding_half", "embedding")) == ([0.0, 1.0], 0)


def test_packed_bits_are_vectors_of_signs(database: Database) -> None:
    one, two = target(database, "one", precision="ubinary"), target(database, "two", precision="ubinary")
    before = score(database, one, {"a": "1", "b": "22"}, lambda p: np.full((len(p), 2), 0b1111_0000, np.uint8))
    now = score(database, two, {"a": "1", "b": "22"}, lambda p: np.full((len(p), 2), 0b1111_0110, np.uint8))
    signs = [np.unpackbits(np.full(2, bits, np.uint8)) * 2.0 - 1 for bits in (0b1111_0000, 0b1111_0110)]
    expected = 1 - signs[0] @ signs[1] / 16
    assert distances(database, now, before, ("embedding_bits", "embedding_bits")) == ([round(expected, 4)] * 2, 0)


def test_vectors_that_cannot_be_compared_are_left_out(database: Database) -> None:
    one, two, bits = target(database, "one"), target(database, "two"), target(database, "bits", precision="ubinary")
    before = score(database, one, {"a": "1", "b": "22"})
    wide = score(database, two, {"a": "1"}, lambda payloads: np.ones((len(payloads), 3), np.float32))
    packed = score(database, bits, {"a": "1"}, lambda payloads: np.ones((len(payloads), 2), np.uint8))
    assert distances(database, wide, before) == ([], 0)
    assert distances(database, packed, before, ("embedding_bits", "embedding")) == ([], 0)
