"""Text that continues prompts and chats, greedily."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import GenerationConfig, PreTrainedModel

from contracts.errors import ModelLoadFailed
from contracts.models import ModelSpec
from contracts.names import Task
from worker.engines.base import Output, Prepared
from worker.engines.causal import load_causal
from worker.engines.chat import PromptTokenizer, StopStrings
from worker.engines.decoding import NO_NUMBER, Continued, Decoder, Prompt
from worker.engines.transformer import TransformerEngine
from worker.layout import Layout
from worker.variants import Variant, stored

log = logging.getLogger(__name__)

NOT_APPLIED = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beams": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "stop_strings": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
}
"""What may stand in a model's generation config and changes what `transformers.generate` gives, with what changes
nothing."""


class GenerateEngine(TransformerEngine):
    """A causal language model that continues each prompt by the most likely token until one ends the text."""

    smallest_pass: ClassVar[int] = 2048

    def __init__(self, module: PreTrainedModel, tokenizer: PromptTokenizer) -> None:
        super().__init__(module)
        self._tokenizer = tokenizer
        self._ends = _ends(module.generation_config, tokenizer.end_id)
        self._decoder = Decoder(module, self._ends)

    @classmethod
    def load(cls, model: ModelSpec, folder: Path, device: str | Layout, variant: Variant | None = None) -> Self:
        """The model, ready on the device, after a first pass that showed that it can run."""
        if model.task is not Task.GENERATE:
            raise ModelLoadFailed(f"model {model.reference}: the generate engine does not {model.task}")
        module = load_causal(folder, variant or stored(model), device)
        settings = module.generation_config
        ignored = [key for key, value in NOT_APPLIED.items() if getattr(settings, key, None) not in (None, value)]
        if ignored:
            log.warning("%s: its generation config asks for %s: not applied", model.reference, ", ".join(ignored))
        return cls(module, PromptTokenizer(folder, module.config))

    def prepare(self, payloads: Sequence[Any], params: Mapping[str, Any]) -> Prepared:
        """Prompts, and chats through the model's template, as token ids."""
        return self._tokenizer.prepare(payloads, params)

    def run(self, rows: Sequence[Prompt], params: Mapping[str, Any]) -> Output:
        """For each prompt `{"text", "finish_reason", "prompt_tokens", "new_tokens"}`.

        The text has no special tokens and ends before the first stop string. The reason is `stop` where a token that
        ends texts or a stop string ended it, and `length` where `max_new_tokens` did; the ending token is counted.
        """
        stop = StopStrings(params.get("stop", ()), self._tokenizer)
        return [self._output(row, stop) for row in self._decoder.continued(rows, stop.reached, self.checkpoint)]

    def synthetic(self, length: int, count: int) -> list[Prompt]:
        """Rows that are half prompt, half generated."""
        return self._tokenizer.synthetic(length, count)

    def used_tokens(self, outputs: Output) -> int:
        """Tokens of the prompts, and those that were generated."""
        return sum(int(output["prompt_tokens"] + output["new_tokens"]) for output in outputs)

    def _output(self, row: Continued, stop: StopStrings) -> Any:
        tokens = row.tokens
        if tokens[-1] == NO_NUMBER:
            return float("nan")
        ended = tokens[-1] in self._ends
        text = self._tokenizer.text(tokens[:-1] if ended else tokens)
        cut = stop.cut(text)
        return {
            "text": text if cut is None else cut,
            "finish_reason": "length" if cut is None and not ended else "stop",
            "prompt_tokens": len(row.prompt.ids),
            "new_tokens": len(tokens),
        }


def _ends(config: GenerationConfig | None, otherwise: int | None) -> frozenset[int]:
    """Tokens that end a text: those of the model's generation config, or the tokenizer's where it names none."""
    found = otherwise if config is None or config.eos_token_id is None else config.eos_token_id
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])
