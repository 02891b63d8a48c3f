"""Documents ranked by a query: cross-encoders, which read each document together with the query."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from contracts.errors import ModelLoadFailed
from contracts.models import ModelSpec
from contracts.names import Task
from worker.engines.base import Output, Prepared
from worker.engines.crossencoder import Activation, read_cross_encoder
from worker.engines.heads import HeadEngine, load_head
from worker.engines.padding import Ids
from worker.engines.pairs import Pairs, PairTokenizer
from worker.layout import Layout
from worker.onnx import OnnxModule
from worker.variants import Variant, stored

ALONE = 8_192
"""Padded tokens of a pass where one query stands alone, whose documents may exceed every measured budget."""


class RerankEngine(HeadEngine):
    """A transformer with one output for a pair of texts, as the CrossEncoder of sentence-transformers runs it."""

    def __init__(self, module: PreTrainedModel | OnnxModule, tokenizer: PairTokenizer, activation: Activation) -> None:
        super().__init__(module)
        self._tokenizer = tokenizer
        self._activation = activation
        self._alone = ALONE

    @classmethod
    def load(cls, model: ModelSpec, folder: Path, device: str | Layout, variant: Variant | None = None) -> Self:
        """The model, ready on the device, after a first forward pass that showed that it can run."""
        if model.task is not Task.RERANK:
            raise ModelLoadFailed(f"model {model.reference}: the rerank engine does not {model.task}")
        cross_encoder = read_cross_encoder(folder)
        module = load_head(folder, variant or stored(model), device)
        if (outputs := module.config.num_labels) != 1:
            raise ModelLoadFailed(
                f"{folder}: rerank takes a model with one output, and this one has {outputs}; classify can tell all"
            )
        tokenizer = PairTokenizer(folder, module.config, cross_encoder.max_tokens, cross_encoder.lower_case)
        engine = cls(module, tokenizer, cross_encoder.activation)
        engine._try(folder, {})
        return engine

    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        """The query with each document as token ids; the length is that of all pairs together."""
        return self._tokenizer.prepare(payloads, params)

    def run(self, rows: Sequence[Pairs], params: Mapping[str, Any]) -> Output:
        """For each query a list of `{"index", "score"}` of its documents, best first, at most `top_k` of them.

        All pairs go through the model sorted by length, in passes that hold no more padded tokens than the rows have
        tokens: so many suit the device. A query that stands alone may have any number, and its passes are bounded.
        """
        ids = [pair for row in rows for pair in row.ids]
        types = [kinds for row in rows for kinds in row.types]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        order = np.argsort(-lengths, kind="stable")
        scores = np.empty(len(ids), np.float32)
        budget = int(lengths.sum()) if len(rows) > 1 else self._alone
        compute = self._scores if len(rows) > 1 else self._scores_if_they_fit
        done = 0
        while done < len(order):
            if done:
                self.checkpoint()
            part = order[done : done + max(budget // int(lengths[order[done]]), 1)]
            chosen = part.tolist()
            found = compute([ids[i] for i in chosen], [types[i] for i in chosen] if types else None)
            if found is None:
                self._alone = budget = int(lengths[part[0]]) * (len(part) // 2)
                continue
            scores[part] = found
            done += len(part)
        ends = accumulate((len(row.ids) for row in rows), initial=0)
        return [_ranked(scores[start:end], params.get("top_k")) for start, end in pairwise(ends)]

    def synthetic(self, length: int, count: int) -> list[Pairs]:
        """Rows of one pair each, of an ordinary token again and again."""
        return self._tokenizer.synthetic(length, count)

    def _scores(self, ids: Sequence[Ids], types: Sequence[Ids] | None) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = self._activation(self._logits(ids, types)[:, 0]).cpu().numpy()
            return found

    def _scores_if_they_fit(self, ids: Sequence[Ids], types: Sequence[Ids] | None) -> NDArray[np.float32] | None:
        """The same; None where memory is too small for so many pairs, so that fewer can be tried."""
        try:
            return self._scores(ids, types)
        except Exception as error:
            if len(ids) == 1 or not self.ran_out_of_memory(error):
                raise
        # Not sooner: an exception that is being handled keeps the tensors of the pass alive.
        self.free_memory()
        return None


def _ranked(scores: NDArray[np.float32], top_k: int | None) -> list[dict[str, Any]]:
    """Documents by their scores; equal ones stay in the order in which they came."""
    if np.isnan(scores).any():
        top_k = None  # or it could cut off what is no number, and nobody would see it
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [{"index": place, "score": score} for place, score in zip(best.tolist(), scores[best].tolist(), strict=True)]
