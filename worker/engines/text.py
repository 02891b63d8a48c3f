"""Texts into tokens, from several threads at once."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Normalizer
from tokenizers.normalizers import Sequence as NormalizerSequence
from transformers import PretrainedConfig
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from contracts.errors import InvalidInput, ItemFailed, ModelLoadFailed
from contracts.inputs import check_text
from contracts.itemcodes import ItemCode
from worker.engines.base import Prepared
from worker.loading import load_tokenizer

UNLIMITED = 10**9
"""A tokenizer that knows of no limit says that it takes more tokens than this."""


class TextTokenizer:
    """A tokenizer that is set up once and never changed, which is what makes it safe to share.

    Args:
        folder: Where the tokenizer's files are.
        config: The model's, for the positions that it has.
        max_tokens: Overrides what the two say an input may have.
        lower_case: Whether texts are made lower case first.
        prompt: Put before every text.

    Raises:
        ModelLoadFailed: There is no fast tokenizer, or nothing says how long an input may be.
    """

    def __init__(
        self,
        folder: Path,
        config: PretrainedConfig,
        max_tokens: int | None = None,
        lower_case: bool = False,
        prompt: str = "",
    ) -> None:
        tokenizer = load_tokenizer(folder)
        self.limit = token_limit(folder, tokenizer.model_max_length, config, max_tokens)
        self.pad_id: int = tokenizer.pad_token_id or 0
        self._prompt = prompt
        self._tokenizer = backend(tokenizer, lower_case)
        self._specials = self._tokenizer.num_special_tokens_to_add(False)
        # Calling this again, for another length, raises "Already borrowed" in every thread that encodes.
        self._tokenizer.enable_truncation(self.limit, direction=tokenizer.truncation_side)
        if "token_type_ids" in tokenizer.model_input_names and any(self._tokenizer.encode("a").type_ids):
            raise ModelLoadFailed(f"{folder}: token types other than 0 are not computed")

    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        """Token ids of each text, in int32, special tokens included."""
        errors: dict[int, ItemFailed] = {}
        for i, payload in enumerate(payloads):
            try:
                check_text(payload)
            except InvalidInput as error:
                errors[i] = ItemFailed(ItemCode.INVALID_INPUT, error.reason)
        texts = ["" if i in errors else payload for i, payload in enumerate(payloads)] if errors else payloads
        if self._prompt:
            texts = [self._prompt + text for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts)
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        truncated = np.zeros(len(ids), np.bool_)
        for i in np.flatnonzero(lengths == self.limit).tolist():
            rest = encodings[i].overflowing
            truncated[i] = bool(rest)
            if rest and params.get("truncate") is False:
                tokens = self.limit + sum(len(part) - self._specials for part in rest)
                errors[i] = ItemFailed(
                    ItemCode.TOO_LONG, f"the text has {tokens} tokens, and the model takes {self.limit} without cutting"
                )
        for i in np.flatnonzero(lengths == 0).tolist():
            errors.setdefault(i, ItemFailed(ItemCode.INVALID_INPUT, "the text has no token that the model could take"))
        # One array for all, and views of it: an array for each would take most of the time of this function.
        flat = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
        ends = list(accumulate(lengths.tolist(), initial=0))
        rows = [flat[start:end] for start, end in pairwise(ends)]
        failed = list(errors)
        lengths[failed] = 0
        truncated[failed] = False
        return Prepared(rows, lengths, truncated, errors)

    def synthetic(self, length: int, count: int) -> list[Any]:
        """Rows of one ordinary token again and again."""
        token = self._tokenizer.encode("a", add_special_tokens=False).ids[0]
        return [np.full(min(length, self.limit), token, np.int32)] * count


def backend(tokenizer: PreTrainedTokenizerFast, lower_case: bool) -> Tokenizer:
    """What does a tokenizer's work, without the padding that it was saved with; it may make texts lower case first."""
    found: Tokenizer = tokenizer.backend_tokenizer
    if lower_case:
        rest: Normalizer | None = found.normalizer
        found.normalizer = NormalizerSequence([Lowercase(), rest]) if rest else Lowercase()
    found.no_padding()
    return found


def token_limit(folder: Path, tokenizer_limit: int, config: PretrainedConfig, wanted: int | None = None) -> int:
    """Tokens that an input may have: as wanted, or the smaller of the tokenizer's limit and the model's positions.

    Never more than what leaves the others of a pass alone.

    Raises:
        ModelLoadFailed: Nothing says.
    """
    positions = getattr(config, "max_position_embeddings", None)
    limit = min(tokenizer_limit, positions) if isinstance(positions, int) and positions > 0 else tokenizer_limit
    limit = min(wanted or limit, _unstretched(config))
    if limit > UNLIMITED:
        raise ModelLoadFailed(
            f"{folder}: nothing says how long an input may be; set model_max_length in tokenizer_config.json"
        )
    return limit


def _unstretched(config: PretrainedConfig) -> int:
    """Tokens up to which positions are the same whatever the longest text of a pass is.

    Beyond it, rotary embeddings of the kinds `longrope` and `dynamic` stretch the positions of a whole pass by its
    longest text (`dynamic_rope_update` of transformers), so that a text would depend on its neighbours, and on the
    parts that it goes through the model in.
    """
    text = config.get_text_config()
    ropes: Mapping[str, Any] = getattr(text, "rope_parameters", None) or {}
    found = [UNLIMITED + 1]
    # Of all layers, or by the kind of layer.
    for rope in [ropes] if "rope_type" in ropes else ropes.values():
        kind = rope.get("rope_type", "") if isinstance(rope, Mapping) else ""
        if "dynamic" in kind:
            found.append(text.max_position_embeddings)
        elif kind == "longrope":
            found.append(rope["original_max_position_embeddings"])
    return min(found)
