from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from contracts.events import MAX_BODY_BYTES, CreatedModel, Event, EventBody, encode
from contracts.jobs import JobCounts, JobInfo, JobStats

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
    assert EventBody.model_validate(body).data.created is None


def test_a_model_that_was_created_is_named() -> None:
    made = CreatedModel(model="small@1", digest="ab", verdict="rejected")
    body = EventBody.of(Event.MODEL_CREATED, info(), NOW, created=made)
    assert body.type == "model.created"
    assert EventBody.model_validate_json(encode(body.model_dump(mode="json"))).data.created == made
