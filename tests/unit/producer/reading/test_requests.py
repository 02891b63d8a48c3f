import json

import pytest

from contracts.errors import InvalidInput
from contracts.inputs import check_prompt
from contracts.names import Task
from contracts.sources import BatchFileSource
from producer.reading.opening import open_source
from producer.reading.requests import parse_request

CHAT = {"model": "smollm", "messages": [{"role": "user", "content": "hello"}]}


def line(body=None, url="/v1/chat/completions", custom_id="a", **more):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": CHAT if body is None else body, **more}


def refused(body=None, **more):
    with pytest.raises(InvalidInput) as caught:
        parse_request(line(body, **more))
    return caught.value.reason


def test_what_each_endpoint_asks_for():
    chat = parse_request(line({**CHAT, "max_completion_tokens": 7, "stop": "\n", "temperature": 0.0, "seed": 1}))
    assert chat[:5] == ("a", "/v1/chat/completions", "smollm", Task.GENERATE, {"max_new_tokens": 7, "stop": ["\n"]})
    assert chat.input == {"messages": [{"role": "user", "content": "hello"}]}
    text = parse_request(line({"model": "m", "prompt": ["once"], "max_tokens": 3}, url="/v1/completions"))
    assert (text.task, text.params, text.input) == (Task.GENERATE, {"max_new_tokens": 3}, "once")
    for value in ("text", ["text"]):
        vector = parse_request(line({"model": "m", "input": value, "encoding_format": "float"}, url="/v1/embeddings"))
        assert (vector.task, vector.params, vector.input) == (Task.EMBED, {}, "text")


def test_what_changes_nothing_is_taken():
    body = {**CHAT, "n": 1, "stream": False, "top_p": 1, "user": "me", "temperature": None, "logprobs": False}
    body |= {"presence_penalty": 0.0, "response_format": {"type": "text"}, "tools": [], "metadata": {"a": "b"}}
    assert parse_request(line(body)).params == {}
    assert parse_request(line({**CHAT, "temperature": 0, "top_p": 0.5})).params == {}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temperature": 0.7}, "body.temperature: 0.7 asks for sampling, and texts are generated greedily"),
        ({"temperature": 1}, "body.temperature: 1 asks for sampling"),
        ({"top_p": 0.9}, "body.top_p: 0.9 asks for sampling"),
        ({"n": 2}, "body.n: 2 cannot be carried out here; leave it out"),
        ({"n": True}, "body.n: True cannot"),
        ({"stream": True}, "body.stream: True cannot"),
        ({"tools": [{"type": "function"}]}, "body.tools: "),
        ({"response_format": {"type": "json_object"}}, "body.response_format: "),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens and max_completion_tokens differ"),
        ({"max_tokens": 0}, "max_new_tokens: Input should be greater than or equal to 1"),
        ({"stop": [""]}, "stop.0: String should have at least 1 character"),
        ({"messages": []}, "body.messages: expected an array of messages, got an array"),
        ({"messages": ["hello"]}, "body.messages[0]: expected an object, got a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "models here take texts and nothing"),
        ({"model": ""}, "body.model: expected the name of a model, got a text"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(options, reason):
    assert reason in refused({**CHAT, **options})


def test_embeddings_that_are_not_offered():
    def embedding(**options):
        return refused({"model": "m", "input": "x", **options}, url="/v1/embeddings")

    assert "body.dimensions: vectors are as long as the model makes them" in embedding(dimensions=64)
    assert "body.encoding_format: 'base64' cannot be carried out here" in embedding(encoding_format="base64")
    assert "body.input: expected a text or an array of one, got an array" in embedding(input=["a", "b"])
    assert "got an array" in embedding(input=[[1, 2]])


def test_lines_that_are_no_requests():
    assert "custom_id: expected a text that no other line has, got null" in refused(custom_id=None)
    assert "url: expected one of /v1/embeddings, /v1/chat/completions, /v1/completions" in refused(url="/v1/images")
    assert "'extra' is no key of a request" in refused(extra=1)
    assert "body: expected an object, got an array" in refused([])
    with pytest.raises(InvalidInput, match="expected a request, got a text"):
        parse_request("x")
    assert "method: expected 'POST', got 'GET'" in refused(method="GET")


def test_messages_in_parts_and_of_developers():
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        {"role": "user", "content": "hello", "name": None},
    ]
    request = parse_request(line({**CHAT, "messages": messages}))
    check_prompt(request.input)
    assert request.input["messages"][0] == {"role": "system", "content": "be brief"}


def write(path, *lines):
    path.write_text("".join(one if type(one) is str else json.dumps(one) + "\n" for one in lines))
    return BatchFileSource(url=str(path))


def test_a_batch_file_asks_the_same_in_each_line(tmp_path):
    source = write(
        tmp_path / "batch.jsonl",
        "nonsense\n",
        line(custom_id="1"),
        "\n",
        line({**CHAT, "model": "other"}, custom_id="2"),
        line({**CHAT, "max_tokens": 5}, custom_id="3"),
        line({"model": "smollm", "prompt": "x"}, url="/v1/completions", custom_id="4"),
        line(custom_id=""),
        line(custom_id="6"),
    )
    with open_source(source) as reading:
        assert (reading.task, reading.model, reading.params) == (Task.GENERATE, "smollm", {})
        assert reading.endpoint == "/v1/chat/completions"
        found = {entry.where: entry.custom_id or entry.error.reason for entry in reading.entries()}
        reading.check_unchanged()
    assert [*found] == [f"batch.jsonl, line {number}" for number in (1, 2, 4, 5, 6, 7, 8)]
    reasons = list(found.values())
    assert reasons[0].startswith("not JSON")
    assert reasons[2].startswith("its model 'other' differs from 'smollm' of the first request: the requests of a file")
    assert reasons[3].startswith("its options {'max_new_tokens': 5} differs from {}")
    assert reasons[4].startswith("its url '/v1/completions' differs from '/v1/chat/completions'")
    assert "id '' is empty" in reasons[5]
    assert [reasons[1], reasons[6]] == ["1", "6"]
    assert (reading.rows_read, reading.bytes_read) == (7, (tmp_path / "batch.jsonl").stat().st_size)


def test_a_batch_file_without_requests(tmp_path):
    with pytest.raises(InvalidInput, match=r"a\.jsonl: the file holds no request"):
        open_source(write(tmp_path / "a.jsonl"))
    with pytest.raises(InvalidInput, match=r"b\.jsonl, line 1: body\.temperature"):
        open_source(write(tmp_path / "b.jsonl", line({**CHAT, "temperature": 1}), line({**CHAT, "n": 2})))
