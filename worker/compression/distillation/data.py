"""The rows that a student learns from: read, made into tokens as in serving, split, and put into batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray
from transformers import PretrainedConfig

from contracts.errors import CompressionFailed
from contracts.names import Task
from contracts.recipes import Augmentation
from worker.compression.distillation.augmentation import changes_words, dropped, varied_input
from worker.engines.base import Prepared
from worker.engines.chat import PromptTokenizer
from worker.engines.padding import Ids
from worker.engines.sentence import read_sentence_model
from worker.engines.text import TextTokenizer
from worker.loading import load_tokenizer

Places: TypeAlias = NDArray[np.intp]
"""Of rows in the file, from 0."""

WINDOW = 50
"""Batches that are drawn at random together, and sorted by length among each other."""
AT_ONCE = 10_000
"""Texts made into tokens at once."""


@dataclass(frozen=True)
class Rows:
    """What the file holds."""

    inputs: list[Any]
    labels: list[Any] | None
    """None where the file has none, or nobody asked."""


def read_rows(file: Path, labelled: bool) -> Rows:
    """The rows of a file of JSON lines.

    Raises:
        CompressionFailed: A line is not what it should be; the message names it.
    """
    inputs, labels = [], []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = orjson.loads(line)
                inputs.append(row["input"])
                labels.append(row["label"] if labelled else None)
            except (ValueError, TypeError, KeyError) as error:
                wanted = '{"input": …, "label": …}' if labelled else '{"input": …}'
                raise CompressionFailed(f"distill: line {number} of the rows is not {wanted}") from error
    return Rows(inputs, labels if labelled else None)


class Tokens:
    """Rows as token ids, cut to the longest that a student learns from.

    Args:
        task: Says which engine the rows are made ready for.
        folder: Of the student, for its tokenizer, its prompt, and whether it makes texts lower case.
        config: The student's.
        max_tokens: Longer rows are cut.
        augmentation: What `varied` does.
    """

    def __init__(
        self, task: Task, folder: Path, config: PretrainedConfig, max_tokens: int, augmentation: Augmentation
    ) -> None:
        self._encode, place = _encoder(task, folder, config, max_tokens)
        self._special = np.array(load_tokenizer(place).all_special_ids, np.int32)
        self._augmentation = augmentation
        self._least = 2 if task in (Task.GENERATE, Task.SCORE) else 1  # or no token follows another
        self._inputs: Sequence[Any] = ()
        self._ids: list[Ids] = []
        self.lengths = np.zeros(0, np.int32)

    def read(self, inputs: Sequence[Any]) -> Places:
        """Take rows in; the places of those that can be learned from: texts that are long enough."""
        errors: set[int] = set()
        for start in range(0, len(inputs), AT_ONCE):
            prepared = self._encode(inputs[start : start + AT_ONCE])
            self._ids += prepared.rows
            errors |= {start + place for place in prepared.errors}
        self._inputs = inputs
        self.lengths = np.array([0 if i in errors else len(ids) for i, ids in enumerate(self._ids)], np.int32)
        return np.flatnonzero(self.lengths >= self._least)

    def of(self, places: Places) -> list[Ids]:
        """Token ids of the rows as they stand."""
        return [self._ids[place] for place in places.tolist()]

    def varied(self, places: Places, random: np.random.Generator) -> list[Ids]:
        """The same, varied by the augmentation; a row of which it leaves too little stays as it is."""
        rows = self.of(places)
        if changes_words(self._augmentation):
            inputs = [varied_input(self._inputs[place], self._augmentation, random) for place in places.tolist()]
            prepared = self._encode(inputs)
            rows = [rows[i] if i in prepared.errors else ids for i, ids in enumerate(prepared.rows)]
        probability = self._augmentation.token_dropout
        fewer = [dropped(ids, self._special, probability, random) for ids in rows]
        pairs = zip(fewer, self.of(places), strict=True)
        return [ids if len(ids) >= self._least else original for ids, original in pairs]


def _encoder(
    task: Task, folder: Path, config: PretrainedConfig, max_tokens: int
) -> tuple[Callable[[Sequence[Any]], Prepared], Path]:
    """What makes inputs into token ids, as the engine of the task does, and the folder of the tokenizer."""
    if task is Task.GENERATE:
        prompts = PromptTokenizer(folder, config)

        def encode(inputs: Sequence[Any]) -> Prepared:
            prepared = prompts.prepare(inputs, {"max_new_tokens": 0, "truncate": True})
            rows = [None if row is None else row.ids[:max_tokens] for row in prepared.rows]
            return Prepared(rows, prepared.lengths, prepared.truncated, prepared.errors)

        return encode, folder
    arguments: dict[str, Any] = {}
    if task is Task.EMBED:
        sentence = read_sentence_model(folder)
        folder, limit = sentence.transformer, sentence.max_tokens
        arguments = {"lower_case": sentence.lower_case, "prompt": sentence.prompt}
    else:
        limit = None
    most = TextTokenizer(folder, config, limit, **arguments).limit
    texts = TextTokenizer(folder, config, min(most, max_tokens), **arguments)
    return lambda inputs: texts.prepare(inputs, {}), folder


def split(inputs: Sequence[Any], usable: Places, share: float, seed: int) -> tuple[Places, Places]:
    """The rows to learn from, and those that are held out; equal inputs are on the same side.

    Raises:
        CompressionFailed: There are too few to have one of each.
    """
    known: dict[bytes, int] = {}
    of = [known.setdefault(orjson.dumps(inputs[i], option=orjson.OPT_SORT_KEYS), len(known)) for i in usable.tolist()]
    if len(known) < 2:
        raise CompressionFailed(
            f"distill: {len(known)} distinct rows of {len(inputs)} can be learned from: give texts, two at least, that "
            "the model can compute"
        )
    count = min(max(round(share * len(known)), 1), len(known) - 1)
    held_out = np.zeros(len(known), np.bool_)
    held_out[np.random.default_rng(seed).permutation(len(known))[:count]] = True
    chosen = held_out[of]
    return usable[~chosen], usable[chosen]


def batches(places: Places, lengths: NDArray[np.int32], size: int, random: np.random.Generator) -> list[Places]:
    """The rows in an order drawn at random, in batches of so many of similar length; the last drawn may be smaller.

    Sorted by length are a few batches among each other, not all: which rows meet differs from epoch to epoch.
    """
    drawn = random.permutation(places)
    found: list[Places] = []
    for start in range(0, len(drawn), size * WINDOW):
        window = drawn[start : start + size * WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        found += [window[i : i + size] for i in range(0, len(window), size)]
    return [found[i] for i in random.permutation(len(found)).tolist()]


def passes(ids: Sequence[Ids], budget: int) -> list[list[int]]:
    """Positions of the rows in parts of similar length, of no more padded tokens than the budget, or of one row."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    found: list[list[int]] = []
    for i in order:
        if found and len(ids[found[-1][0]]) * (len(found[-1]) + 1) <= budget:
            found[-1].append(i)
        else:
            found.append([i])
    return found
