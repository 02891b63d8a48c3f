import json
import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from contracts.errors import CompressionFailed, DatabaseUnavailable, ItemFailed
from contracts.jobs import JobInfo
from storage import control, jobs
from storage.database import Database
from tests.jobs import claimed, execute, finish, make_target, outage, store, submit
from worker.compression import teachers
from worker.compression.patience import PatientDatabase

TEXTS = ["one", "two", "three", "two"]


def rows(folder: Path, texts: list[str] = TEXTS) -> Path:
    file = folder / "given.jsonl"
    file.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
    return file


def no_pause(seconds: float) -> None:
    raise AssertionError("it waits for a job that has ended")


def no_note(fraction: float, message: str) -> None:
    raise AssertionError(message)


def patient(database: Database) -> PatientDatabase:
    return PatientDatabase(database, timedelta(seconds=20), threading.Event())


def done(database: Database, job_id: UUID) -> JobInfo:
    return teachers.wait(patient(database), job_id, job_id, no_note, no_pause, 60)


def test_vectors_stand_in_the_order_of_the_rows(database: Database, tmp_path: Path) -> None:
    job_id = submit(database, make_target(database), TEXTS)
    lease = claimed(database)
    finish(database, lease)
    lesson = teachers.write(patient(database), done(database, job_id), rows(tmp_path), None, tmp_path)
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
    file = rows(tmp_path, ["text"])
    lesson = teachers.write(patient(database), done(database, job_id), file, ["a", "b"], tmp_path)
    assert np.load(lesson.teacher).tolist() == [[0.25, 0.75]]


def test_few_rows_that_the_teacher_failed_at_are_in_neither_file(database: Database, tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(100)] + ["the longest of all texts"]
    job_id = submit(database, make_target(database), texts)
    lease = claimed(database)
    finish(database, lease, {lease.input_ids[0]: ItemFailed("too_long", "it is")})
    lesson = teachers.write(patient(database), done(database, job_id), rows(tmp_path, texts), None, tmp_path)
    assert [json.loads(line)["input"] for line in lesson.data.read_text().splitlines()] == texts[:-1]
    assert len(np.load(lesson.teacher)) == 100
    assert lesson.left_out == 1


def test_a_teacher_that_failed_at_many_rows_is_no_teacher(database: Database, tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(97)] + ["the longest of all texts", "a", "b"]
    job_id = submit(database, make_target(database), texts)
    lease = claimed(database)
    finish(database, lease, {lease.input_ids[0]: ItemFailed("too_long", "it is")})
    info = done(database, job_id)
    reason = r"has no output for 1 of 100 rows, the first of them row 98 \(too_long: it is\): mend these rows"
    with pytest.raises(CompressionFailed, match=reason):
        teachers.write(patient(database), info, rows(tmp_path, texts), None, tmp_path)
    with pytest.raises(CompressionFailed, match=r"given\.jsonl has 4 rows, and the teacher's job .* 100 items"):
        teachers.write(patient(database), info, rows(tmp_path), None, tmp_path)
    assert not (tmp_path / "teacher.npy").exists()


def test_it_waits_and_says_how_far_the_teacher_is(database: Database) -> None:
    job_id = submit(database, make_target(database), TEXTS, per_shard=1)
    told: list[str] = []

    def pause(_: float) -> None:
        finish(database, claimed(database))

    teachers.wait(patient(database), job_id, job_id, lambda _, message: told.append(message), pause, 60)
    assert told == [f"waiting for the teacher: {percent} %" for percent in (0, 33, 67)]


def test_an_outage_of_postgres_is_waited_out(database: Database, tmp_path: Path) -> None:
    job_id = submit(database, make_target(database), TEXTS)
    away = ExitStack()

    def pause(_: float) -> None:
        finish(database, claimed(database))
        away.enter_context(outage(database))
        with pytest.raises(DatabaseUnavailable):
            execute(database, "SELECT 1")
        threading.Timer(0.5, away.close).start()

    info = teachers.wait(patient(database), job_id, job_id, lambda *_: None, pause, 60)
    away.enter_context(outage(database))
    threading.Timer(0.5, away.close).start()
    assert teachers.write(patient(database), info, rows(tmp_path), None, tmp_path).left_out == 0


def test_a_process_that_is_to_end_waits_for_no_postgres(database: Database) -> None:
    leaving = threading.Event()
    leaving.set()
    asked = PatientDatabase(database, timedelta(seconds=60), leaving)
    with outage(database), pytest.raises(DatabaseUnavailable):
        asked.transact(lambda connection: jobs.get(connection, UUID(int=7)))


def test_a_teacher_that_failed_says_why(database: Database) -> None:
    job_id = submit(database, make_target(database), TEXTS)
    with database.transaction() as connection:
        control.fail(connection, job_id, "model_load_failed", "there is no such file")
        assert jobs.get(connection, job_id).state.terminal
    with pytest.raises(CompressionFailed, match=f"the teacher's job {job_id} is failed: there is no such file"):
        done(database, job_id)


def test_after_a_standstill_the_teacher_has_time_to_be_taken_up(database: Database) -> None:
    job_id = submit(database, make_target(database), TEXTS)
    execute(database, "UPDATE jobs SET queued_at = now() - interval '1 hour'")

    def pause(_: float) -> None:
        finish(database, claimed(database))

    assert teachers.wait(patient(database), job_id, job_id, lambda *_: None, pause, 60).state.terminal


def test_a_teacher_that_nobody_computes_is_not_waited_for_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "LEAST_SECONDS", 0.0)
    job_id = submit(database, make_target(database), TEXTS)

    def wait(seconds: float) -> None:
        teachers.wait(patient(database), job_id, job_id, lambda _, message: None, no_pause, seconds)

    with pytest.raises(CompressionFailed, match=f"the teacher's job {job_id} is queued still, .*a worker of the pool"):
        wait(0)
    execute(database, "UPDATE jobs SET queued_at = now() - interval '1 hour'")
    with pytest.raises(CompressionFailed, match=r"nobody has taken up any of its work for 3,600 s, and 3 of 3"):
        wait(3600)
    with database.transaction() as connection:
        control.pause(connection, job_id)
    with pytest.raises(CompressionFailed, match=r"is paused still, .*, and 3 of 3 rows .*: resume it"):
        wait(3600)
    with database.transaction() as connection:
        control.resume(connection, job_id)
    claimed(database)  # somebody works on it, so that it is waited for
    with pytest.raises(AssertionError, match="it waits"):
        wait(3600)


def test_a_teacher_that_was_removed_is_missed_by_name(database: Database) -> None:
    job_id = UUID(int=7)
    with pytest.raises(CompressionFailed, match=f"the teacher's job {job_id} was removed: submit"):
        done(database, job_id)
