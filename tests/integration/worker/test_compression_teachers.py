import json
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from contracts.errors import CompressionFailed, ItemFailed
from storage import control, jobs
from storage.database import Database
from tests.jobs import claimed, finish, make_target, store, submit
from worker.compression import teachers

TEXTS = ["one", "two", "three", "two"]


def rows(folder: Path, texts: list[str] = TEXTS) -> Path:
    file = folder / "given.jsonl"
    file.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
    return file


def no_pause(seconds: float) -> None:
    raise AssertionError("it waits for a job that has ended")


def no_note(fraction: float, message: str) -> None:
    raise AssertionError(message)


def test_vectors_stand_in_the_order_of_the_rows(database: Database, tmp_path: Path) -> None:
    job_id = submit(database, make_target(database), TEXTS)
    lease = claimed(database)
    finish(database, lease)
    info = teachers.wait(database, job_id, no_note, no_pause, 60)
    lesson = teachers.write(database, info, rows(tmp_path), None, tmp_path)
    found = np.load(lesson.teacher)
    assert (found.dtype, found.shape) == (np.float32, (4, 1))
    assert found[1] == found[3]
    assert len(set(found[:, 0])) == 3
    assert lesson.left_out == 0


def test_scores_stand_in_the_order_of_the_labels(database: Database, tmp_path: Path) -> None:
    job_id = submit(database, make_target(database, task="classify"), ["text"])
    lease = claimed(database)
    scores = [{"label": "b", "score": 0.75}, {"label": "a", "score": 0.25}]
    store(database, lease.target_id, lease.shard_id, lease.input_ids, outputs=[scores])
    finish(database, lease)
    info = teachers.wait(database, job_id, no_note, no_pause, 60)
    lesson = teachers.write(database, info, rows(tmp_path, ["text"]), ["a", "b"], tmp_path)
    assert np.load(lesson.teacher).tolist() == [[0.25, 0.75]]


def test_rows_that_the_teacher_failed_at_are_in_neither_file(database: Database, tmp_path: Path) -> None:
    job_id = submit(database, make_target(database), TEXTS)
    lease = claimed(database)
    finish(database, lease, {lease.input_ids[0]: ItemFailed("too_long", "it is")})
    info = teachers.wait(database, job_id, no_note, no_pause, 60)
    lesson = teachers.write(database, info, rows(tmp_path), None, tmp_path)
    assert [json.loads(line)["input"] for line in lesson.data.read_text().splitlines()] == ["one", "two", "two"]
    assert len(np.load(lesson.teacher)) == 3
    assert lesson.left_out == 1


def test_a_teacher_without_any_output_is_no_teacher(database: Database, tmp_path: Path) -> None:
    job_id = submit(database, make_target(database), ["text"])
    lease = claimed(database)
    finish(database, lease, {lease.input_ids[0]: ItemFailed("too_long", "it is")})
    info = teachers.wait(database, job_id, no_note, no_pause, 60)
    with pytest.raises(CompressionFailed, match="has no output for any of 1 rows"):
        teachers.write(database, info, rows(tmp_path, ["text"]), None, tmp_path)
    with pytest.raises(CompressionFailed, match=r"given\.jsonl has 4 rows, and the teacher's job .* 1 items"):
        teachers.write(database, info, rows(tmp_path), None, tmp_path)


def test_it_waits_and_says_how_far_the_teacher_is(database: Database) -> None:
    job_id = submit(database, make_target(database), TEXTS, per_shard=1)
    told: list[str] = []

    def pause(_: float) -> None:
        finish(database, claimed(database))

    teachers.wait(database, job_id, lambda _, message: told.append(message), pause, 60)
    assert told == [f"waiting for the teacher: {percent} %" for percent in (0, 33, 67)]


def test_a_teacher_that_failed_says_why(database: Database) -> None:
    job_id = submit(database, make_target(database), TEXTS)
    with database.transaction() as connection:
        control.fail(connection, job_id, "model_load_failed", "there is no such file")
        assert jobs.get(connection, job_id).state.terminal
    with pytest.raises(CompressionFailed, match=f"the teacher's job {job_id} is failed: there is no such file"):
        teachers.wait(database, job_id, no_note, no_pause, 60)


def test_a_teacher_that_nobody_computes_is_not_waited_for_for_ever(database: Database) -> None:
    job_id = submit(database, make_target(database), TEXTS)

    def wait() -> None:
        teachers.wait(database, job_id, lambda _, message: None, lambda _: None, 0)

    with pytest.raises(CompressionFailed, match=f"the teacher's job {job_id} is queued still, .*a worker of the pool"):
        wait()
    with database.transaction() as connection:
        control.pause(connection, job_id)
    with pytest.raises(CompressionFailed, match=r"is paused still, after 0 s, and 3 of 3 rows .*: resume it"):
        wait()


def test_a_teacher_that_was_removed_is_missed_by_name(database: Database) -> None:
    job_id = UUID(int=7)
    with pytest.raises(CompressionFailed, match=f"the teacher's job {job_id} was removed: submit"):
        teachers.wait(database, job_id, no_note, no_pause, 60)
