"""Sentence embeddings by a transformer, as the model's own files say."""

from collections.abc import Mapping, Sequence
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
from worker.engines.padding import Ids, padded
from worker.engines.sentence import SentenceModel, read_sentence_model
from worker.engines.text import TextTokenizer
from worker.engines.transformer import TransformerEngine
from worker.engines.vectors import in_precision, refused, unpackable
from worker.layout import Layout
from worker.loading import load_model
from worker.onnx import OnnxModule
from worker.variants import Variant, stored


class EmbedEngine(TransformerEngine):
    """A transformer whose hidden states are pooled into one vector a text."""

    def __init__(self, sentence: SentenceModel, module: PreTrainedModel | OnnxModule, tokenizer: TextTokenizer) -> None:
        super().__init__(module)
        self._sentence = sentence
        self._tokenizer = tokenizer
        self._dimensions = len(sentence.poolings) * int(module.config.hidden_size)

    @classmethod
    def load(cls, model: ModelSpec, folder: Path, device: str | Layout, variant: Variant | None = None) -> Self:
        """The model, ready on the device, after a first forward pass that showed that it can run."""
        if model.task is not Task.EMBED:
            raise ModelLoadFailed(f"model {model.reference}: the embed engine does not {model.task}")
        sentence = read_sentence_model(folder)
        module = load_model(sentence.transformer, variant or stored(model), device)
        config = module.config
        if config.is_encoder_decoder or not hasattr(config, "hidden_size"):
            raise ModelLoadFailed(f"{folder}: {config.model_type} is not a text encoder of one stack")
        config.use_cache = False
        tokenizer = TextTokenizer(
            sentence.transformer, config, sentence.max_tokens, sentence.lower_case, sentence.prompt
        )
        engine = cls(sentence, module, tokenizer)
        engine._try(folder, {})
        return engine

    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        """Texts as token ids; all of them refused where the precision does not suit the model."""
        if refusal := unpackable(self._dimensions, params.get("precision", "float32")):
            return refused(len(payloads), refusal)
        return self._tokenizer.prepare(payloads, params)

    def run(self, rows: Sequence[Ids], params: Mapping[str, Any]) -> Output:
        """Vectors `[n, d]`, or bits `[n, d / 8]`."""
        with torch.inference_mode():
            ids, mask = padded(rows, self._tokenizer.pad_id, self._device)
            hidden = self._module(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
            # Half floats would lose digits in the sum over many tokens.
            vectors = pooled(hidden.float(), mask, self._sentence.poolings)
            if self._sentence.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            found: NDArray[np.float32] = vectors.cpu().numpy()
        return in_precision(found, params.get("precision", "float32"))

    def synthetic(self, length: int, count: int) -> list[Ids]:
        """Rows of one ordinary token again and again."""
        return self._tokenizer.synthetic(length, count)


def pooled(hidden: torch.Tensor, mask: torch.Tensor | None, poolings: Sequence[str]) -> torch.Tensor:
    """Hidden states `[n, tokens, d]` as one vector a text; several poolings stand behind one another.

    The mask `[n, tokens]` is 1 for what is real and 0 for padding, which stands at the end.
    """
    if mask is None:
        mask = hidden.new_ones(hidden.shape[:2], dtype=torch.int64)
    lengths = mask.sum(1)
    vectors = []
    for pooling in poolings:
        match pooling:
            case "cls":
                vectors.append(hidden[:, 0])
            case "lasttoken":
                vectors.append(hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1])
            case "max":
                vectors.append(hidden.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1))
            case _:
                total = (hidden * mask[:, :, None]).sum(1)
                divisor = lengths if pooling == "mean" else lengths.float().sqrt()
                vectors.append(total / divisor[:, None])
    return torch.cat(vectors, dim=-1)
