"""How likely a causal language model finds texts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from contracts.errors import ItemFailed, ModelLoadFailed
from contracts.itemcodes import ItemCode
from contracts.models import ModelSpec
from contracts.names import Task
from worker.engines.base import Output, Prepared
from worker.engines.causal import load_causal, load_graph_of_causal, vocabulary
from worker.engines.padding import Ids, padded
from worker.engines.text import TextTokenizer
from worker.engines.transformer import TransformerEngine
from worker.layout import Layout
from worker.onnx import OnnxModule, graph_file
from worker.variants import Variant, stored

LOGITS = 2**24
"""Logits held at a time on a CPU: 64 MB in float32. Of a whole micro-batch they would take gigabytes."""
LOGITS_ELSEWHERE = 2**27


class ScoreEngine(TransformerEngine):
    """A causal language model that tells the log-likelihood of each token given those before it.

    The first token of a text is given and not scored, as in the perplexity guide of transformers. Where the tokenizer
    puts one before every text (BOS), that is the first, so that all of the text's own are scored.
    """

    def __init__(self, module: PreTrainedModel | OnnxModule, tokenizer: TextTokenizer) -> None:
        super().__init__(module)
        self._tokenizer = tokenizer
        self._logits = LOGITS if self._device.type == "cpu" else LOGITS_ELSEWHERE

    @classmethod
    def load(cls, model: ModelSpec, folder: Path, device: str | Layout, variant: Variant | None = None) -> Self:
        """The model, ready on the device, after a first pass that showed that it can run."""
        if model.task is not Task.SCORE:
            raise ModelLoadFailed(f"model {model.reference}: the score engine does not {model.task}")
        load = load_graph_of_causal if graph_file(folder) else load_causal
        module = load(folder, variant or stored(model), device)
        return cls(module, TextTokenizer(folder, module.config))

    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        """Texts as token ids; one in which there is nothing to score fails."""
        prepared = self._tokenizer.prepare(payloads, params)
        for place in np.flatnonzero(prepared.lengths == 1).tolist():
            prepared.errors[place] = ItemFailed(
                ItemCode.TOO_SHORT, "the text has a single token, and the first is not scored: nothing comes before it"
            )
            prepared.lengths[place] = 0
        return prepared

    def run(self, rows: Sequence[Ids], params: Mapping[str, Any]) -> Output:
        """For each text `{"log_likelihood", "tokens", "perplexity"}`, and `token_log_likelihoods` where asked for.

        Natural logarithms. The log-likelihood is the sum over the scored tokens, of which there are `tokens`; the
        perplexity is `exp(-log_likelihood / tokens)`.
        """
        likelihoods = self._likelihoods(rows)
        outputs = []
        for row, given in zip(rows, likelihoods, strict=True):
            scored = given[: len(row) - 1]
            total = float(scored.sum(dtype=np.float64))
            output: dict[str, Any] = {
                "log_likelihood": total,
                "tokens": len(scored),
                "perplexity": _perplexity(total / len(scored)),
            }
            if params.get("per_token"):
                output["token_log_likelihoods"] = scored.tolist()
            outputs.append(output)
        return outputs

    def synthetic(self, length: int, count: int) -> list[Ids]:
        """Rows of one ordinary token again and again."""
        return self._tokenizer.synthetic(max(length, 2), count)

    @torch.inference_mode()
    def _likelihoods(self, rows: Sequence[Ids]) -> NDArray[np.float32]:
        """Of each token but the first given those before it, `[n, longest - 1]`; what stands behind a row is no use.

        The texts go through the model some columns at a time, so that the logits of a few are held, and a long text
        can be let go. Padding stands at the end, where no token looks: no mask is needed.
        """
        ids, _ = padded(rows, 0, self._device)
        if isinstance(self._module, OnnxModule):
            return self._likelihoods_of_graph(ids)
        columns = max(self._logits // (len(rows) * vocabulary(self._module)), 1)
        cache = DynamicCache()
        found = []
        for start in range(0, ids.shape[1] - 1, columns):
            if start:
                self.checkpoint()
            stop = min(start + columns, ids.shape[1] - 1)
            output = self._module(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True, return_dict=True)
            found.append(_chosen(output.logits, ids[:, start + 1 : stop + 1]))
        return torch.cat(found, dim=1).cpu().numpy()

    def _likelihoods_of_graph(self, ids: torch.Tensor) -> NDArray[np.float32]:
        """The same by a graph, which takes texts as a whole: some at a time, of a long one all logits at once."""
        rows = max(self._logits // (ids.shape[1] * vocabulary(self._module)), 1)
        found = []
        for start in range(0, len(ids), rows):
            if start:
                self.checkpoint()
            part = ids[start : start + rows]
            found.append(_chosen(self._module(input_ids=part[:, :-1], return_dict=True).logits, part[:, 1:]))
        return torch.cat(found).cpu().numpy()


def _chosen(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The log-likelihood of each token `[n, tokens]` among the logits `[n, tokens, words]` of the one before."""
    logits = logits.float()
    return logits.gather(-1, ids[:, :, None])[:, :, 0] - logits.logsumexp(-1)


def _perplexity(mean: float) -> float:
    """The exponential of a mean log-likelihood's negative; infinity where it is too large for a float."""
    try:
        return math.exp(-mean)
    except OverflowError:
        return math.inf
