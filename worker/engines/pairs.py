"""A query with each of its documents into tokens, from several threads at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding
from transformers import PretrainedConfig

from contracts.errors import InvalidInput, ItemFailed, ModelLoadFailed
from contracts.inputs import check_ranking
from contracts.itemcodes import ItemCode
from worker.engines.base import Prepared
from worker.engines.padding import Ids
from worker.engines.text import backend, token_limit
from worker.loading import load_tokenizer

NOTHING = np.zeros(0, np.int32)
ORDER = (None, 0, None, 1, None)
"""Of which text the tokens of a pair are, in turns; None for the tokenizer's own, such as [CLS] and [SEP]."""


@dataclass(frozen=True)
class Pairs:
    """A query with each of its documents."""

    ids: list[Ids]
    """Token ids of each pair, special tokens included."""
    types: list[Ids]
    """Their token types: whether a token is of the query or the document; empty where the model knows none."""


class PairTokenizer:
    """A tokenizer of pairs that is set up once and never changed, which is what makes it safe to share.

    Query and documents are tokenized once each, cut and joined here: the library would keep everything that it cuts
    off, in every combination of a part of the query with a part of the document.

    Args:
        folder: Where the tokenizer's files are.
        config: The model's, for the positions that it has.
        max_tokens: Overrides what the two say a pair may have.
        lower_case: Whether texts are made lower case first.

    Raises:
        ModelLoadFailed: There is no fast tokenizer, nothing says how long a pair may be, or the tokenizer does not
            put a query before a document.
    """

    def __init__(
        self, folder: Path, config: PretrainedConfig, max_tokens: int | None = None, lower_case: bool = False
    ) -> None:
        tokenizer = load_tokenizer(folder)
        self.limit = token_limit(folder, tokenizer.model_max_length, config, max_tokens)
        self._tokenizer = backend(tokenizer, lower_case)
        self._tokenizer.no_truncation()
        self._keep_end = tokenizer.truncation_side == "left"
        self._frame = _frame(folder, self._tokenizer.encode("a", "a"))
        self._typed = "token_type_ids" in tokenizer.model_input_names
        self._specials = sum(len(ids) for ids, _ in self._frame[::2])

    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        """The pairs of each ranking; its length is the tokens of them all, and it is truncated when one of them is."""
        errors = {}
        for place, payload in enumerate(payloads):
            try:
                check_ranking(payload)
            except InvalidInput as error:
                errors[place] = ItemFailed(ItemCode.INVALID_INPUT, error.reason)
        good = [place for place in range(len(payloads)) if place not in errors]
        texts = [text for place in good for text in (payloads[place]["query"], *payloads[place]["documents"])]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        tokens = (np.array(encoding.ids, np.int32) for encoding in encodings)
        rows: list[Pairs | None] = [None] * len(payloads)
        lengths = np.zeros(len(payloads), np.int32)
        truncated = np.zeros(len(payloads), np.bool_)
        for place in good:
            query, *documents = islice(tokens, 1 + len(payloads[place]["documents"]))
            cut = [i for i, document in enumerate(documents) if self._tokens(query, document) > self.limit]
            if cut and params.get("truncate") is False:
                errors[place] = ItemFailed(
                    ItemCode.TOO_LONG,
                    f"the query with document {cut[0]} has {self._tokens(query, documents[cut[0]])} tokens, "
                    f"and the model takes {self.limit} without cutting",
                )
                continue
            row = self.join(query, documents)
            if not all(map(len, row.ids)):
                errors[place] = ItemFailed(ItemCode.INVALID_INPUT, "a pair has no token that the model could take")
                continue
            rows[place] = row
            lengths[place] = sum(map(len, row.ids))
            truncated[place] = bool(cut)
        return Prepared(rows, lengths, truncated, errors)

    def join(self, query: Ids, documents: Sequence[Ids]) -> Pairs:
        """Tokens of a query and of documents as the model takes them, each pair cut to the limit."""
        (head, _), _, (middle, _), _, (tail, _) = self._frame
        kinds = np.array([kind for _, kind in self._frame], np.int32)
        ids, types = [], []
        for document in documents:
            first, second = self._cut(query, document)
            parts = (head, first, middle, second, tail)
            ids.append(np.concatenate(parts))
            if self._typed:
                types.append(np.repeat(kinds, [len(part) for part in parts]))
        return Pairs(ids, types)

    def synthetic(self, length: int, count: int) -> list[Any]:
        """Rows of one pair each, of an ordinary token again and again."""
        token = self._tokenizer.encode("a", add_special_tokens=False).ids[:1]
        document = np.full(max(min(length, self.limit) - self._specials - 1, 1), token, np.int32)
        return [self.join(np.array(token, np.int32), [document])] * count

    def _tokens(self, query: Ids, document: Ids) -> int:
        """Of the pair, before it is cut."""
        return len(query) + len(document) + self._specials

    def _cut(self, query: Ids, document: Ids) -> tuple[Ids, Ids]:
        """What the limit leaves of both: the longer gives first, like the strategy `longest_first` of tokenizers."""
        room = max(self.limit - self._specials, 0)
        if len(query) + len(document) <= room:
            return query, document
        shorter = min(len(query), len(document))
        # Where half of the room is not enough for the shorter one, an odd token goes to the longer one.
        shorter = min(shorter, room // 2)
        longer = room - shorter
        sizes = (shorter, longer) if len(query) <= len(document) else (longer, shorter)
        first, second = (
            tokens[len(tokens) - size :] if self._keep_end else tokens[:size]
            for tokens, size in zip((query, document), sizes, strict=True)
        )
        return first, second


def _frame(folder: Path, pair: Encoding) -> list[tuple[Ids, int]]:
    """What the tokenizer makes of two texts: its own tokens, the first text, its own, the second text, its own.

    Each with the token type that all of it has; of its own there may be none.
    """
    found: list[tuple[Ids, int]] = [(NOTHING, 0)] * len(ORDER)
    place = 0
    for text, run in groupby(zip(pair.sequence_ids, pair.ids, pair.type_ids, strict=True), itemgetter(0)):
        _, ids, types = zip(*run, strict=True)
        while place < len(ORDER) and ORDER[place] != text:
            place += 1
        if place == len(ORDER) or len(set(types)) > 1:
            raise ModelLoadFailed(f"{folder}: the tokenizer does not make a pair of a query and the document behind it")
        found[place] = (np.array(ids, np.int32), types[0])
    return found
