"""Greedy decoding of many prompts at once: rows leave when they end, and waiting ones take their places.

A step appends one column for all rows, as `transformers.generate` does it with prompts that are padded at the left.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import torch
from transformers import PreTrainedModel

from worker.engines.cache import RowCache
from worker.engines.padding import Ids, padded
from worker.layout import input_device

SLOTS = 64
"""Rows decoded at once. As rows leave, more at once is never slower, but their keys and values take memory."""
PREFILL = 512
"""Tokens, padding included, of a pass over prompts on a CPU: about a second's work, in which nobody can end it."""
PREFILL_ELSEWHERE = 8192
NO_NUMBER = -1
"""Stands for the token of a row for which the model gave NaN or infinity."""


@dataclass(frozen=True)
class Prompt:
    """What is to be continued."""

    ids: Ids
    new_tokens: int
    """At most so many follow."""
    endless: bool = False
    """Whether no token ends it: it was made up to measure with."""


@dataclass(eq=False)
class Continued:
    """What became of a prompt."""

    prompt: Prompt
    tokens: list[int] = field(default_factory=list)
    """What followed; the last may be a token that ends texts, or `NO_NUMBER`."""


class Decoder:
    """Continues prompts by the most likely token, again and again.

    Args:
        module: A causal language model.
        ends: Tokens that end a text.
        slots: Rows decoded at once.
    """

    def __init__(self, module: PreTrainedModel, ends: frozenset[int], slots: int = SLOTS) -> None:
        self._module = module
        self._device = input_device(module)
        self._ends = ends
        self._slots = slots
        self._prefill = PREFILL if self._device.type == "cpu" else PREFILL_ELSEWHERE
        self._options = _accepted(module, logits_to_keep=1)
        self._takes_positions = bool(_accepted(module, position_ids=None))

    @torch.inference_mode()
    def continued(
        self,
        prompts: Sequence[Prompt],
        stopped: Callable[[list[int]], bool] = lambda _: False,
        checkpoint: Callable[[], None] = lambda: None,
    ) -> list[Continued]:
        """What follows each prompt, in their order.

        Args:
            prompts: Each has a token at least.
            stopped: Whether a row ends with the tokens that it has.
            checkpoint: Called between passes; what it raises is let through.
        """
        rows = [Continued(prompt) for prompt in prompts]
        # The longest enter first: those that come later fit into the columns that stand.
        waiting = sorted(rows, key=lambda row: len(row.prompt.ids))
        decoded: list[Continued] = []
        cache: RowCache | None = None
        while waiting or decoded:
            checkpoint()
            # Several at a time, where others are on their way: with each entry the whole cache is copied.
            if waiting and (not decoded or len(decoded) <= self._slots * 3 // 4):
                group = self._group(waiting, self._slots - len(decoded))
                entered = self._enter(group, checkpoint)
                group = self._leave(group, entered, stopped)
                if not group:
                    continue
                if cache is None or not decoded:
                    cache = entered
                else:
                    cache.join(entered)
                decoded += group
                continue
            assert cache is not None
            newest = torch.tensor([row.tokens[-1:] for row in decoded], device=self._device)
            self._step(decoded, newest, cache)
            decoded = self._leave(decoded, cache, stopped)
        return rows

    def _group(self, waiting: list[Continued], free: int) -> list[Continued]:
        """The next rows to enter together, taken from the end of those that wait."""
        longest = len(waiting[-1].prompt.ids)
        count = min(free, max(self._prefill // longest, 1))
        group = waiting[-count:]
        del waiting[-count:]
        return group

    def _enter(self, group: list[Continued], checkpoint: Callable[[], None]) -> RowCache:
        """Put prompts through the model, and note the first token of each; one that is long alone, in parts."""
        ids, _ = padded([row.prompt.ids for row in group], 0, self._device, left=True)
        width = ids.shape[1]
        cache = RowCache(torch.tensor([width - len(row.prompt.ids) for row in group], device=self._device))
        *parts, last = torch.split(ids, self._prefill, dim=1)
        for part in parts:
            self.forward(part, cache)
            checkpoint()
        self._step(group, last, cache)
        return cache

    def _step(self, rows: Sequence[Continued], ids: torch.Tensor, cache: RowCache) -> None:
        """Append ids to the rows' columns, and to each row the token that follows."""
        logits = self.forward(ids, cache)
        best = logits.argmax(-1, keepdim=True)
        tokens = best.where(logits.gather(-1, best).isfinite(), NO_NUMBER)
        for row, token in zip(rows, tokens[:, 0].tolist(), strict=True):
            row.tokens.append(token)

    def forward(self, ids: torch.Tensor, cache: RowCache) -> torch.Tensor:
        """Pass ids `[n, columns]`, behind what is cached; logits of what follows the last, `[n, vocabulary]`."""
        start = cache.columns
        stop = start + ids.shape[1]
        positions = {"position_ids": cache.positions(start, stop)} if self._takes_positions else {}
        output = self._module(
            input_ids=ids,
            attention_mask=cache.mask(stop),
            past_key_values=cache.layers,
            use_cache=True,
            return_dict=True,
            **positions,
            **self._options,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _leave(self, rows: list[Continued], cache: RowCache, stopped: Callable[[list[int]], bool]) -> list[Continued]:
        """The rows that go on; the others leave the cache."""
        going = [not self._ended(row, stopped) for row in rows]
        if not all(going):
            cache.keep([place for place, goes in enumerate(going) if goes])
        return list(compress(rows, going))

    def _ended(self, row: Continued, stopped: Callable[[list[int]], bool]) -> bool:
        token = row.tokens[-1]
        if len(row.tokens) >= row.prompt.new_tokens or token == NO_NUMBER:
            return True
        return not row.prompt.endless and (token in self._ends or stopped(row.tokens))


def _accepted(module: PreTrainedModel, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that this model's forward pass takes."""
    known = inspect.signature(module.forward).parameters
    return {name: value for name, value in arguments.items() if name in known}
