from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from contracts.events import MAX_BODY_BYTES, CreatedModel, Event, EventBody, JobData, RunData, encode
from contracts.jobs import JobCounts, JobInfo, JobStats
from contracts.runs import RunInfo

NOW = datetime(2026, 1, 1, 0, 0, 0, 123456, UTC)
BIG = 2**63 - 1


def info(**changes: Any) -> JobInfo:
    values: dict[str, Any] = dict.fromkeys(JobInfo.model_fields)
    return JobInfo.model_validate(
        values
        | {
            "id": uuid4(),
            "state": "failed",
            "model": f"{'m' * 127}@{2**31 - 1}",
            "task": "embed",
            "params": {},
            "pool": "default",
            "priority": "normal",
            "metadata": {},
            "retry_of": uuid4(),
            "counts": JobCounts(items=BIG, distinct=BIG, cached=BIG, computed=-BIG, failed=BIG, truncated=BIG),
            "stats": JobStats(),
            "error_code": "model_load_failed",
            "created_at": NOW,
            "finished_at": NOW,
        }
        | changes
    )


def size(**changes: Any) -> int:
    return len(encode(EventBody.of(Event.FAILED, info(**changes), NOW).model_dump(mode="json")))


@pytest.mark.parametrize("character", ["a", '"', "\x01", "é", "😀", "\\"])
def test_no_body_comes_near_the_limit(character: str) -> None:
    long = character * 100_000
    largest = {"note": character * (7900 // len(encode({"": character})[5:-2]))}
    assert size(error_message=long, metadata=largest) < MAX_BODY_BYTES
    assert size(error_message=long, metadata={"note": long}) < MAX_BODY_BYTES
    assert size(error_message=long, metadata={long: None}) < MAX_BODY_BYTES


def run(**changes: Any) -> RunInfo:
    spec = {
        "source": {"kind": "sql", "url": "postgresql://u:hush@db/x", "query": "SELECT 1"},
        "model": "m" * 127,
        "sink": {"kind": "sql", "url": "postgresql://u:hush@db/x", "table": "t"},
        "metadata": changes.pop("metadata", {}),
    }
    big = dict.fromkeys(("rows", "new", "changed", "removed", "cached", "computed", "failed", "bad"), BIG)
    return RunInfo.model_validate(
        {
            "id": uuid4(),
            "schedule": "s" * 100,
            "due_at": NOW,
            "state": "failed",
            "spec": spec,
            "job_id": uuid4(),
            "progress": {},
            "changes": {**big, "since": uuid4()},
            "drift": {"rows": BIG, "psi": 1 / 3, "ks": 1 / 3, "cosine": 1 / 3, "over": ("psi", "ks", "cosine")},
            "report": None,
            "error_code": "source_changed",
            "error_message": None,
            "created_at": NOW,
            "started_at": NOW,
            "finished_at": NOW,
        }
        | changes
    )


@pytest.mark.parametrize("character", ["a", '"', "\x01", "é", "😀"])
def test_nor_does_that_of_a_run(character: str) -> None:
    largest = {"note": character * (7900 // len(encode({"": character})[5:-2]))}
    for length in (300, 1990, 5000):
        told = run(error_message=character * 100_000, metadata=largest, report=character * length)
        body = EventBody.of_run(Event.RUN_FAILED, told, "m" * 127 + "@1", NOW)
        assert len(encode(body.model_dump(mode="json"))) < MAX_BODY_BYTES


def test_a_run_is_told_of_without_its_source_its_sink_and_their_passwords() -> None:
    body = EventBody.of_run(Event.SCHEDULE_DRIFT, run(report="s3://u:hush@b/r.html"), "m@1", NOW)
    raw = encode(body.model_dump(mode="json"))
    assert b"hush" not in raw
    assert b"SELECT" not in raw
    read = EventBody.model_validate_json(raw)
    assert isinstance(read.data, RunData)
    assert read == body
    assert read.data.report == "s3://u:***@b/r.html"


def test_metadata_is_whole_or_left_out_and_a_message_keeps_its_beginning() -> None:
    def data(**changes: Any) -> Any:
        return EventBody.of(Event.FAILED, info(**changes), NOW).data

    assert data(metadata={"run": 7}).metadata == {"run": 7}
    assert data(metadata={"run": "x" * 8000}).metadata is None
    assert data(error_message="short").error_message == "short"
    assert data(error_message=None).error_message is None
    cut = data(error_message="the beginning " + "x" * 10_000).error_message
    assert cut.startswith("the beginning xx")
    assert cut.endswith("…")


def test_numbers_that_postgres_made_of_floats_are_encoded() -> None:
    assert encode({"n": 10**300}) == b'{"n":1' + b"0" * 300 + b"}"


def test_a_body_of_before_there_were_compressions_is_still_one() -> None:
    body = EventBody.of(Event.COMPLETED, info(), NOW).model_dump(mode="json")
    del body["data"]["created"]
    read = EventBody.model_validate(body).data
    assert isinstance(read, JobData)
    assert read.created is None


def test_a_model_that_was_created_is_named() -> None:
    made = CreatedModel(model="small@1", digest="ab", verdict="rejected")
    body = EventBody.of(Event.MODEL_CREATED, info(), NOW, created=made)
    assert body.type == "model.created"
    read = EventBody.model_validate_json(encode(body.model_dump(mode="json"))).data
    assert isinstance(read, JobData)
    assert read.created == made
