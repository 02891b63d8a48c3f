"""Prompts and chats into tokens, and tokens into text; from several threads at once."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PretrainedConfig

from contracts.errors import InvalidInput, ItemFailed
from contracts.inputs import check_prompt
from contracts.itemcodes import ItemCode
from worker.engines.base import Prepared
from worker.engines.decoding import Prompt
from worker.engines.text import backend, token_limit
from worker.loading import load_tokenizer

_NO_CLOCK = "{% set strftime_now = date_of_today %}\n"
"""Put before every template, it takes away what transformers gives them, as nothing has the other name.

A chat would be another prompt tomorrow. Templates that ask whether there is a clock have a date of their own.
"""


class PromptTokenizer:
    """A model's tokenizer with its chat template.

    The template is a program that came with the model; transformers runs it in Jinja's sandbox, without access to
    anything outside of the chat, and here without a clock.

    Args:
        folder: Where the tokenizer's files are.
        config: The model's, for the positions that it has.

    Raises:
        ModelLoadFailed: There is no fast tokenizer, or nothing says how many tokens the model takes.
    """

    def __init__(self, folder: Path, config: PretrainedConfig) -> None:
        self._tokenizer = load_tokenizer(folder)
        self.limit = token_limit(folder, self._tokenizer.model_max_length, config)
        self.end_id: int | None = self._tokenizer.eos_token_id
        self._backend = backend(self._tokenizer, lower_case=False)
        # Calling this again raises "Already borrowed" in every thread that encodes.
        self._backend.no_truncation()
        added = self._backend.get_added_tokens_decoder()
        self._special = frozenset(token for token, what in added.items() if what.special)

    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        """Prompts as token ids with room for what follows; a prompt's length is reckoned with `max_new_tokens`."""
        new_tokens: int = params["max_new_tokens"]
        count = len(payloads)
        prepared = Prepared([None] * count, np.zeros(count, np.int32), np.zeros(count, np.bool_))
        for place, payload in enumerate(payloads):
            try:
                ids = self._ids(payload)
                cut = self._cut(ids, self.limit - new_tokens, params["truncate"])
            except InvalidInput as error:
                prepared.errors[place] = ItemFailed(ItemCode.INVALID_INPUT, error.reason)
            except ItemFailed as error:
                prepared.errors[place] = error
            else:
                prepared.rows[place] = Prompt(np.array(cut, np.int32), new_tokens)
                prepared.lengths[place] = len(cut) + new_tokens
                prepared.truncated[place] = len(cut) < len(ids)
        return prepared

    def text(self, tokens: Sequence[int]) -> str:
        """What the tokens say; special ones say nothing."""
        return self._backend.decode(tokens, skip_special_tokens=True)

    def says(self, token: int) -> bool:
        """Whether the token stands for text: it is not special, and there is such a token."""
        return token not in self._special and self._backend.id_to_token(token) is not None

    def synthetic(self, length: int, count: int) -> list[Prompt]:
        """Rows that are half prompt, half generated."""
        length = max(min(length, self.limit), 2)
        token = self._backend.encode("a", add_special_tokens=False).ids[0]
        return [Prompt(np.full(length - length // 2, token, np.int32), length // 2, endless=True)] * count

    def _ids(self, payload: Any) -> list[int]:
        """Token ids of a prompt with the special tokens of the tokenizer, of a chat with those of its template."""
        check_prompt(payload)
        chat = isinstance(payload, Mapping)
        text = self._written_out(payload["messages"]) if chat else payload
        ids: list[int] = self._backend.encode(text, add_special_tokens=not chat).ids
        if not ids:
            raise ItemFailed(ItemCode.INVALID_INPUT, "the prompt has no token that the model could take")
        return ids

    def _written_out(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The chat as the model was taught to read it, up to where it is its turn."""
        try:
            template = _NO_CLOCK + self._tokenizer.get_chat_template()
        except ValueError as error:
            raise ItemFailed(
                ItemCode.NO_CHAT_TEMPLATE,
                "the model has no chat template: give it a prompt, or take a model that was taught to chat",
            ) from error
        chat = [dict(message) for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise ItemFailed(ItemCode.CHAT_TEMPLATE_FAILED, f"the model's chat template refuses it: {error}") from error
        assert isinstance(text, str)
        return text

    def _cut(self, ids: list[int], room: int, truncate: bool) -> list[int]:
        """The prompt, or the end of it that leaves room; the token that begins every text stays."""
        if len(ids) <= room:
            return ids
        begins = ids[0] == self._tokenizer.bos_token_id
        if truncate and room > begins:
            return [*ids[:begins], *ids[len(ids) - room + begins :]]
        raise ItemFailed(
            ItemCode.TOO_LONG,
            f"the prompt has {len(ids)} tokens, and beside max_new_tokens the model takes {max(room, 0)}",
        )


class StopStrings:
    """Strings before the first of which a text ends.

    Args:
        strings: Each has a character at least.
        tokenizer: Says what tokens say.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PromptTokenizer) -> None:
        self._strings = strings
        self._tokenizer = tokenizer
        # A token that says something says a byte at least; a few more, as the first of them may say half a character.
        self._window = max((len(string.encode()) for string in strings), default=0) + 8

    def reached(self, tokens: list[int]) -> bool:
        """Whether one of them ends with the last of the tokens."""
        if not self._strings:
            return False
        saying = islice(filter(self._tokenizer.says, reversed(tokens)), self._window)
        end = self._tokenizer.text([*saying][::-1])
        # What the end says by itself may differ from what it says in its place.
        return any(string in end for string in self._strings) and self.cut(self._tokenizer.text(tokens)) is not None

    def cut(self, text: str) -> str | None:
        """The text before the first of them; nothing where it has none."""
        places = [place for string in self._strings if (place := text.find(string)) >= 0]
        return text[: min(places)] if places else None
