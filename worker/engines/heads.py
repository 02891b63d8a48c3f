"""Models that end in a head for classification: numbers for a whole text, or for a pair of texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from contracts.errors import ModelLoadFailed
from worker.engines.padding import Ids, padded, padded_like
from worker.engines.sentence import read_json
from worker.engines.transformer import TransformerEngine
from worker.layout import Layout
from worker.loading import load_model
from worker.onnx import OnnxModule
from worker.variants import Variant


class HeadEngine(TransformerEngine):
    """An engine on a model with such a head."""

    def _logits(self, ids: Sequence[Ids], types: Sequence[Ids] | None = None) -> torch.Tensor:
        """What the head gives in one pass, `[n, outputs]` in float32; NaN throughout a row with any that is no number.

        Args:
            ids: Token ids of each text or pair.
            types: Their token types, where they are not all 0.
        """
        with torch.inference_mode():
            tokens, mask = padded(ids, _pad_id(self._module), self._device)
            more = {} if types is None else {"token_type_ids": padded_like(types, self._device)}
            output = self._module(input_ids=tokens, attention_mask=mask, return_dict=True, **more)
            logits: torch.Tensor = output.logits.float()
            # A sigmoid would make an infinity a 1, and a cut to the best could leave a NaN out.
            return logits.where(logits.isfinite().all(-1, keepdim=True), torch.nan)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` as it stands there: the library's own reader fills in labels that nobody gave.

    Raises:
        ModelLoadFailed: There is none, or it is no JSON object.
    """
    config = read_json(folder / "config.json", dict)
    if config is None:
        raise ModelLoadFailed(f"{folder / 'config.json'} is missing")
    return dict(config)


def load_head(folder: Path, variant: Variant, device: str | Layout) -> PreTrainedModel | OnnxModule:
    """The model with its head, on the device.

    Raises:
        ModelLoadFailed: It could not be loaded, or it does not say which token fills up a micro-batch.
    """
    module = load_model(folder, variant, device, AutoModelForSequenceClassification)
    module.config.use_cache = False
    if _pad_id(module) is None:
        raise ModelLoadFailed(
            f"{folder / 'config.json'}: pad_token_id is missing: it says which token fills up the shorter texts of a "
            "micro-batch; add the one that the model was trained with"
        )
    return module


def _pad_id(module: PreTrainedModel | OnnxModule) -> Any:
    """The model's, not the tokenizer's: decoders find the end of a text by it, others their positions."""
    return module.config.get_text_config().pad_token_id
