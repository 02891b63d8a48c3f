"""Lines of OpenAI batch files: what each asks for, in the words of a task.

Source of the fields: OpenAI's API reference, "Batch", "Embeddings", "Chat Completions" and "Completions".
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from contracts.errors import InvalidInput, InvalidParams
from contracts.inputs import json_type
from contracts.names import Task
from contracts.params import parse_params

_LINE = ("custom_id", "method", "url", "body")
_OF_CALLERS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "seed")
"""What changes no result: a greedy text is the same for each seed."""
_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "echo": (False,),
    "logprobs": (False, 0),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "encoding_format": ("float",),
}
"""Options with the values that ask for what is done anyway."""


class Request(NamedTuple):
    """One line of a batch file."""

    custom_id: str
    endpoint: str
    model: str
    task: Task
    params: dict[str, Any]
    """Those that it sets."""
    input: Any


def parse_request(line: Any) -> Request:
    """What a line asks for.

    Raises:
        InvalidInput: It is no request, or asks for what is not offered; the field is named.
    """
    if type(line) is not dict:
        raise InvalidInput(f"expected a request, got {json_type(line)}: an object with {', '.join(_LINE)}")
    if unknown := sorted(line.keys() - set(_LINE)):
        raise InvalidInput(f"{unknown[0]!r:.60} is no key of a request, which has {', '.join(_LINE)}")
    custom_id, endpoint, body = line.get("custom_id"), line.get("url"), line.get("body")
    if type(custom_id) is not str:
        raise InvalidInput(f"custom_id: expected a text that no other line has, got {json_type(custom_id)}")
    if line.get("method", "POST") != "POST":
        raise InvalidInput(f"method: expected 'POST', got {line['method']!r:.40}")
    if type(endpoint) is not str or endpoint not in _ENDPOINTS:
        raise InvalidInput(f"url: expected one of {', '.join(_ENDPOINTS)}, got {endpoint!r:.60}")
    if type(body) is not dict:
        raise InvalidInput(f"body: expected an object, got {json_type(body)}")
    # Null asks for what is done when nothing is said.
    options = {key: value for key, value in body.items() if value is not None}
    model = options.pop("model", None)
    if type(model) is not str or not model:
        raise InvalidInput(f"body.model: expected the name of a model, got {json_type(model)}")
    task, take = _ENDPOINTS[endpoint]
    value, params = take(options)
    _refuse_rest(options)
    try:
        parse_params(task, params)
    except InvalidParams as error:
        raise InvalidInput(f"body: {error}") from None
    return Request(custom_id, endpoint, model, task, params, value)


def _embedding(options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if "dimensions" in options:
        raise InvalidInput("body.dimensions: vectors are as long as the model makes them; leave it out")
    return _single(options, "input"), {}


def _completion(options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return _single(options, "prompt"), _generation(options)


def _chat(options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    messages = options.pop("messages", None)
    if type(messages) is not list or not messages:
        raise InvalidInput(f"body.messages: expected an array of messages, got {json_type(messages)}")
    return {"messages": [_message(place, message) for place, message in enumerate(messages)]}, _generation(options)


def _message(place: int, message: Any) -> Any:
    """A message with its parts in one; what else is wrong with it is said by whoever takes inputs."""
    if type(message) is not dict:
        raise InvalidInput(f"body.messages[{place}]: expected an object, got {json_type(message)}")
    told = {key: value for key, value in message.items() if value is not None}
    if told.get("role") == "developer":
        told["role"] = "system"  # its name for newer models
    if type(parts := told.get("content")) is list:
        texts = [part["text"] for part in parts if type(part) is dict and set(part) == {"type", "text"}]
        if len(texts) < len(parts) or not all(type(text) is str for text in texts):
            raise InvalidInput(f"body.messages[{place}].content: models here take texts and nothing else")
        told["content"] = "".join(texts)
    return told


def _single(options: dict[str, Any], key: str) -> str:
    """The one text of a request: the results of a batch are one for each line."""
    value = options.pop(key, None)
    if type(value) is list and len(value) == 1:
        value = value[0]
    if type(value) is not str:
        raise InvalidInput(
            f"body.{key}: expected a text or an array of one, got {json_type(value)}: give each text a line of its own"
        )
    return value


def _generation(options: dict[str, Any]) -> dict[str, Any]:
    """Parameters of `generate`; what asks for anything but greedy decoding is refused."""
    temperature, top_p = options.pop("temperature", None), options.pop("top_p", 1)
    greedy = _is(temperature, (None, 0))
    if not greedy or (temperature is None and not _is(top_p, (1,))):
        name, value = ("top_p", top_p) if greedy else ("temperature", temperature)
        raise InvalidInput(
            f"body.{name}: {value!r:.40} asks for sampling, and texts are generated greedily, so that they depend on "
            "the prompt alone; set temperature to 0, or leave both out"
        )
    limits = {name: options.pop(name) for name in ("max_tokens", "max_completion_tokens") if name in options}
    if len({repr(limit) for limit in limits.values()}) > 1:
        raise InvalidInput("body: max_tokens and max_completion_tokens differ; give one of them")
    params: dict[str, Any] = {}
    if limits:
        params["max_new_tokens"] = next(iter(limits.values()))
    if "stop" in options:
        stop = options.pop("stop")
        params["stop"] = [stop] if type(stop) is str else stop
    return params


def _refuse_rest(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name not in _OF_CALLERS and not _is(value, _NOTHING.get(name, ())):
            raise InvalidInput(f"body.{name}: {value!r:.60} cannot be carried out here; leave it out")


def _is(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value is one of these; `true` is no 1, and `false` no 0."""
    return any(value == one and (type(value) is bool) is (type(one) is bool) for one in allowed)


_ENDPOINTS: Mapping[str, tuple[Task, Callable[[dict[str, Any]], tuple[Any, dict[str, Any]]]]] = {
    "/v1/embeddings": (Task.EMBED, _embedding),
    "/v1/chat/completions": (Task.GENERATE, _chat),
    "/v1/completions": (Task.GENERATE, _completion),
}
