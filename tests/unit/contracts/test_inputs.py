from types import MappingProxyType
from typing import Any

import pytest

from contracts.errors import InvalidInput
from contracts.inputs import ROLES, check_input, json_type
from tests.models import model_spec

RANKING = 'rerank takes {"query": "…", "documents": ["…", …]}'
PROMPT = 'generate takes a prompt, or {"messages": [{"role": "user", "content": "…"}, …]}'


def said(task: str, value: Any) -> str:
    """Why the task's engine does not take the value."""
    with pytest.raises(InvalidInput) as refused:
        check_input(model_spec(task=task, engine=task), value)
    assert str(refused.value) == refused.value.reason
    return refused.value.reason


def chat(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


HELLO = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("task", "value"),
    [
        *((task, text) for task in ("embed", "classify", "score") for text in ("", "a text")),
        ("rerank", {"query": "q", "documents": ["d"]}),
        ("rerank", MappingProxyType({"documents": ("", "d"), "query": ""})),
        ("generate", "a prompt"),
        ("generate", chat({"role": "system", "content": ""}, HELLO, {"role": "assistant", "content": "hi"})),
        ("generate", {"messages": (MappingProxyType(HELLO),)}),
    ],
)
def test_what_a_task_takes(task: str, value: Any) -> None:
    check_input(model_spec(task=task, engine=task), value)


@pytest.mark.parametrize("task", ["embed", "classify", "score"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (True, "a boolean"),
        (5, "a number"),
        (0.5, "a number"),
        (["text"], "an array"),
        ({"text": "a"}, "an object with 'text'"),
        (chat(HELLO), "an object with 'messages'"),
    ],
)
def test_texts_are_texts(task: str, value: Any, kind: str) -> None:
    assert said(task, value) == f"expected a text, got {kind}: give a string"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("text", "expected a query with documents, got a text"),
        (["q", ["d"]], "expected a query with documents, got an array"),
        ({}, "expected a query with documents, got an object with no key"),
        ({"query": "q"}, "expected a query with documents, got an object with 'query'"),
        (
            {"query": "q", "documents": ["d"], "top_k": 3},
            "expected a query with documents, got an object with 'query', 'documents', 'top_k'",
        ),
        ({"query": None, "documents": ["d"]}, "the query is null, not a text"),
        ({"query": ["q"], "documents": ["d"]}, "the query is an array, not a text"),
        ({"query": "q", "documents": []}, "the query comes without documents"),
        ({"query": "q", "documents": None}, "the query comes without documents"),
        ({"query": "q", "documents": "d"}, "the query comes without documents"),
        ({"query": "q", "documents": {"d": "d"}}, "the query comes without documents"),
        ({"query": "q", "documents": ["d", 1]}, "document 1 is a number, not a text"),
        ({"query": "q", "documents": ["d", "d", {"text": "d"}]}, "document 2 is an object with 'text', not a text"),
    ],
)
def test_rankings_name_what_is_wrong_and_where(value: Any, reason: str) -> None:
    assert said("rerank", value) == f"{reason}: {RANKING}"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7, "expected a prompt or a chat, got a number"),
        ([HELLO], "expected a prompt or a chat, got an array"),
        (HELLO, "expected a prompt or a chat, got an object with 'role', 'content'"),
        (chat(HELLO) | {"tools": []}, "expected a prompt or a chat, got an object with 'messages', 'tools'"),
        (chat(), "the chat has no messages"),
        ({"messages": None}, "the chat has no messages"),
        ({"messages": "hello"}, "the chat has no messages"),
        (chat(HELLO, "hello"), "message 1 is a text, not a role with its content"),
        (chat({"role": "user"}), "message 0 is an object with 'role', not a role with its content"),
        (
            chat(HELLO | {"name": "me"}),
            "message 0 is an object with 'role', 'content', 'name', not a role with its content",
        ),
        (
            chat(HELLO, {"role": "tool", "content": "4"}),
            f"message 1 has the role 'tool', and a chat knows {', '.join(ROLES)}",
        ),
        (chat({"role": None, "content": "4"}), "message 0 has the role None, and a chat knows system, user, assistant"),
        (chat({"role": "user", "content": None}), "message 0 has null as its content, not a text"),
        (
            chat({"role": "user", "content": [{"type": "text", "text": "hello"}]}),
            "message 0 has an array as its content, not a text",
        ),
    ],
)
def test_chats_name_what_is_wrong_and_where(value: Any, reason: str) -> None:
    assert said("generate", value) == f"{reason}: {PROMPT}"


def test_an_empty_prompt_is_none() -> None:
    assert said("generate", "") == "the prompt is empty: give at least one character"


@pytest.mark.parametrize("engine", ["fake", "tabular"])
@pytest.mark.parametrize("value", [None, 5, "", {"any": ["thing"]}])
def test_engines_of_others_say_themselves_what_they_take(engine: str, value: Any) -> None:
    check_input(model_spec(task="classify", engine=engine), value)


def test_a_message_does_not_repeat_all_that_was_given() -> None:
    assert len(json_type({f"{number}" * 10**6: number for number in range(9)})) < 200
    assert len(said("generate", chat({"role": "x" * 10**6, "content": ""}))) < 300
    assert json_type({key: key for key in "abcdef"}) == "an object with 'a', 'b', 'c', 'd'"
