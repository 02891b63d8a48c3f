import json
import os
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import InvalidRequest
from contracts.names import Task
from contracts.sinks import BatchFileSink
from producer.writing import Writer, open_sink
from tests.results import JOB, Cut, Notes, StoredResults, model_of

REQUEST = JOB.hex
GENERATED = [
    {"text": "Yes.", "finish_reason": "stop", "prompt_tokens": 9, "new_tokens": 2},
    None,
    {"text": "and on", "finish_reason": "length", "prompt_tokens": 3, "new_tokens": 16},
]


def writer(folder: Path, **more: str) -> Writer:
    return open_sink(BatchFileSink(url=str(folder / "out.jsonl"), **more))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_embeddings(tmp_path: Path) -> None:
    results = StoredResults([np.array([0.5, -1], np.float32), None], ids=["a", "b"])
    notes = Notes()
    assert writer(tmp_path).write(results, None, notes) == 2
    assert notes.kept == [({}, 2)]
    assert lines(tmp_path / "out.jsonl") == [
        {
            "id": f"batch_req_{REQUEST}0",
            "custom_id": "a",
            "response": {
                "status_code": 200,
                "request_id": f"req_{REQUEST}0",
                "body": {
                    "object": "list",
                    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}],
                    "model": "model@3",
                    "usage": {"prompt_tokens": 0, "total_tokens": 0},
                },
            },
            "error": None,
        }
    ]
    assert lines(tmp_path / "out.errors.jsonl") == [
        {
            "id": f"batch_req_{REQUEST}1",
            "custom_id": "b",
            "response": None,
            "error": {"code": "too_long", "message": "it is long"},
        }
    ]


def test_chats(tmp_path: Path) -> None:
    results = StoredResults(GENERATED, Task.GENERATE, chats=True)
    writer(tmp_path, errors_url=str(tmp_path / "bad.jsonl")).write(results, None, Notes())
    first, last = (line["response"]["body"] for line in lines(tmp_path / "out.jsonl"))
    assert first == {
        "id": f"chatcmpl-{REQUEST}0",
        "object": "chat.completion",
        "created": 1760683133,
        "model": "model@3",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Yes.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }
    assert last["choices"][0]["finish_reason"] == "length"
    assert [line["custom_id"] for line in lines(tmp_path / "bad.jsonl")] == ["id-1"]


def test_completions(tmp_path: Path) -> None:
    writer(tmp_path).write(StoredResults(GENERATED, Task.GENERATE, ids=[None, None, "c"]), None, Notes())
    first, last = lines(tmp_path / "out.jsonl")
    assert (first["custom_id"], last["custom_id"]) == ("0", "c")
    assert first["response"]["body"]["object"] == "text_completion"
    assert first["response"]["body"]["choices"] == [
        {"index": 0, "text": "Yes.", "logprobs": None, "finish_reason": "stop"}
    ]


def test_a_run_without_errors_leaves_no_error_file_of_an_earlier_one(tmp_path: Path) -> None:
    writer(tmp_path).write(StoredResults(GENERATED, Task.GENERATE), None, Notes())
    assert sorted(os.listdir(tmp_path)) == ["out.errors.jsonl", "out.jsonl"]
    writer(tmp_path).write(StoredResults(GENERATED[:1], Task.GENERATE), None, Notes())
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_cut_it_leaves_what_was_there_and_is_written_anew(tmp_path: Path) -> None:
    writer(tmp_path).write(StoredResults(GENERATED[:1], Task.GENERATE), None, Notes())
    before = (tmp_path / "out.jsonl").read_bytes()
    results = StoredResults(GENERATED, Task.GENERATE, page=1)
    notes = Notes(1)
    with pytest.raises(Cut):
        writer(tmp_path).write(results, None, notes)
    assert os.listdir(tmp_path) == ["out.jsonl"]
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert writer(tmp_path).write(results, notes.last, Notes()) == 3
    assert len(lines(tmp_path / "out.jsonl")) == 2


def test_what_cannot_be_written_is_refused_before_scoring(tmp_path: Path) -> None:
    sink = writer(tmp_path)
    sink.check(model_of(Task.EMBED), {})
    assert os.listdir(tmp_path) == []
    with pytest.raises(InvalidRequest, match="no endpoint for classify; write .jsonl by a file sink"):
        sink.check(model_of(Task.CLASSIFY), {})
    with pytest.raises(InvalidRequest, match="the error file needs a name of its own"):
        writer(tmp_path, errors_url=str(tmp_path / "out.jsonl")).check(model_of(Task.EMBED), {})
    with pytest.raises(InvalidRequest, match=r"bad.csv: the files of an OpenAI batch end in .jsonl"):
        writer(tmp_path, errors_url=str(tmp_path / "bad.csv")).check(model_of(Task.EMBED), {})


def test_outputs_without_a_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="item 0: the model's output has no text"):
        writer(tmp_path).write(StoredResults([{"words": 3}], Task.GENERATE), None, Notes())
    assert os.listdir(tmp_path) == []
