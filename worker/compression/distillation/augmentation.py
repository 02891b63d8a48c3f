"""Texts and tokens varied at random, so that a student sees more than what there is.

What the teacher says of an embedding or of labels stays what it said of the original.
"""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.recipes import Augmentation
from worker.engines.padding import Ids

_WORDS = re.compile(r"\S+")


def changes_words(augmentation: Augmentation) -> bool:
    """Whether texts are other texts, that have to be made into tokens again."""
    return augmentation.word_swap > 0 or augmentation.word_deletion > 0


def varied_input(payload: Any, augmentation: Augmentation, random: np.random.Generator) -> Any:
    """A text, or each message of a chat, with words swapped and deleted."""
    if isinstance(payload, str):
        return varied_text(payload, augmentation, random)
    messages = [
        {**message, "content": varied_text(message["content"], augmentation, random)} for message in payload["messages"]
    ]
    return {**payload, "messages": messages}


def varied_text(text: str, augmentation: Augmentation, random: np.random.Generator) -> str:
    """The text with words swapped, then deleted; what stands between words stays in its place.

    From the left, each word changes places with the next by the probability `word_swap`, and what was swapped is not
    swapped again. Each word is deleted by the probability `word_deletion`, with what stands behind it; one of them
    stays. A text without a word stays as it is.
    """
    spans = [match.span() for match in _WORDS.finditer(text)]
    if not spans:
        return text
    words = [text[start:end] for start, end in spans]
    place = 0
    while place < len(words) - 1:
        if random.random() < augmentation.word_swap:
            words[place], words[place + 1] = words[place + 1], words[place]
            place += 1
        place += 1
    ends = [start for start, _ in spans[1:]] + [len(text)]
    gaps = [text[end:until] for (_, end), until in zip(spans, ends, strict=True)]
    stays = _stays(len(words), augmentation.word_deletion, random)
    kept = [word + gap for word, gap, keep in zip(words, gaps, stays, strict=True) if keep]
    return text[: spans[0][0]] + "".join(kept)


def dropped(ids: Ids, special: NDArray[np.int32], probability: float, random: np.random.Generator) -> Ids:
    """The tokens without some, each left out by the probability; special ones stay, and so does one of the others.

    Args:
        ids: Of one row.
        special: Ids of the tokenizer's own tokens, such as [CLS] and [SEP].
        probability: Of one token.
        random: Decides.
    """
    ordinary = np.flatnonzero(~np.isin(ids, special))
    if probability == 0 or not len(ordinary):
        return ids
    stays = np.ones(len(ids), np.bool_)
    stays[ordinary] = _stays(len(ordinary), probability, random)
    return ids[stays]


def _stays(count: int, probability: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Which of so many stay; one at least."""
    stays: NDArray[np.bool_] = random.random(count) >= probability
    if not stays.any():
        stays[random.integers(count)] = True
    return stays
