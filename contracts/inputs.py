"""What each task takes as an input."""

from collections.abc import Mapping
from typing import Any, NoReturn

from contracts.errors import InvalidInput
from contracts.models import ModelSpec
from contracts.names import Task

TEXT_ENGINES = frozenset({"embed", "classify", "rerank", "generate", "score"})
"""Our own engines on real weights; what others take, they say themselves."""
ROLES = ("system", "user", "assistant")
"""Who may speak in a chat."""


def check_input(model: ModelSpec, value: Any) -> None:
    """Make sure that the model can take the value; an engine of somebody else's, or a fake, takes whatever is JSON.

    Raises:
        InvalidInput: It cannot; the reason says what its task takes.
    """
    if model.engine not in TEXT_ENGINES:
        return
    match model.task:
        case Task.RERANK:
            check_ranking(value)
        case Task.GENERATE:
            check_prompt(value)
        case _:
            check_text(value)


def check_text(value: Any) -> None:
    """Make sure that the value is a text.

    Raises:
        InvalidInput: It is not.
    """
    if type(value) is not str:
        raise InvalidInput(f"expected a text, got {json_type(value)}: give a string")


def check_ranking(value: Any) -> None:
    """Make sure that the value is `{"query": text, "documents": [text, …]}`.

    Raises:
        InvalidInput: It is not.
    """
    wanted = 'rerank takes {"query": "…", "documents": ["…", …]}'
    if not isinstance(value, Mapping) or set(value) != {"query", "documents"}:
        raise InvalidInput(f"expected a query with documents, got {json_type(value)}: {wanted}")
    if type(value["query"]) is not str:
        raise InvalidInput(f"the query is {json_type(value['query'])}, not a text: {wanted}")
    documents = value["documents"]
    if type(documents) not in (list, tuple) or not documents:
        raise InvalidInput(f"the query comes without documents: {wanted}")
    for place, document in enumerate(documents):
        if type(document) is not str:
            raise InvalidInput(f"document {place} is {json_type(document)}, not a text: {wanted}")


def check_prompt(value: Any) -> None:
    """Make sure that the value is a prompt, or `{"messages": [{"role": …, "content": …}, …]}`.

    Raises:
        InvalidInput: It is not.
    """
    if type(value) is str:
        if not value:
            raise InvalidInput("the prompt is empty: give at least one character")
        return
    wanted = 'generate takes a prompt, or {"messages": [{"role": "user", "content": "…"}, …]}'
    if not isinstance(value, Mapping) or set(value) != {"messages"}:
        raise InvalidInput(f"expected a prompt or a chat, got {json_type(value)}: {wanted}")
    messages = value["messages"]
    if type(messages) not in (list, tuple) or not messages:
        raise InvalidInput(f"the chat has no messages: {wanted}")
    for place, message in enumerate(messages):
        _check_message(place, message, wanted)


def _check_message(place: int, message: Any, wanted: str) -> None:
    def refuse(reason: str) -> NoReturn:
        raise InvalidInput(f"message {place} {reason}: {wanted}")

    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        refuse(f"is {json_type(message)}, not a role with its content")
    if message["role"] not in ROLES:
        refuse(f"has the role {message['role']!r:.80}, and a chat knows {', '.join(ROLES)}")
    if type(message["content"]) is not str:
        refuse(f"has {json_type(message['content'])} as its content, not a text")


def json_type(value: Any) -> str:
    """What stands there, as JSON names it, with the first keys of an object."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case Mapping():
            return f"an object with {', '.join(f'{key!r:.40}' for key in list(value)[:4]) or 'no key'}"
        case list() | tuple():
            return "an array"
        case _:
            return f"a {type(value).__name__}"
