"""What the generate engine makes of prompts, chats, templates, stop strings and full slots."""

from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from contracts.errors import ModelLoadFailed
from contracts.names import Quantization
from contracts.params import parse_params
from tests.models import model_spec
from worker.engines.base import Prepared
from worker.engines.causal import load_causal
from worker.engines.chat import StopStrings
from worker.engines.decoding import Decoder, Prompt
from worker.engines.generate import GenerateEngine, _ends
from worker.variants import plain

ALTERNATING = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ message['content'] }}{% endfor %}"
)
ESCAPING = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


@pytest.fixture(scope="module")
def engine(language_model: Path) -> GenerateEngine:
    return load(language_model)


def load(folder: Path) -> GenerateEngine:
    return GenerateEngine.load(model_spec(engine="generate", task="generate"), folder, "cpu")


def prepare(engine: GenerateEngine, payload: Any, **params: Any) -> Prepared:
    return engine.prepare([payload], parse_params("generate", params))


def generate(engine: GenerateEngine, payload: Any, **params: Any) -> dict[str, Any]:
    prepared = prepare(engine, payload, **params)
    assert prepared.errors == {}
    [output] = engine.run(prepared.rows, parse_params("generate", params))
    assert isinstance(output, dict)
    return output


def chat(*said: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]}


def with_template(engine: GenerateEngine, monkeypatch: pytest.MonkeyPatch, template: str | None) -> None:
    monkeypatch.setattr(engine._tokenizer._tokenizer, "chat_template", template)


def test_a_chat_goes_through_the_models_template(engine: GenerateEngine, language_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    for messages in (
        chat("What is a queue?")["messages"],
        chat("Hi", "Hello! <|im_end|>", "日本語?")["messages"],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " spaces \n"}],
    ):
        [row] = prepare(engine, {"messages": messages}).rows
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert row.ids.tolist() == expected


def test_a_prompt_is_taken_as_it_is(engine: GenerateEngine, language_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    text = "Once upon a time, <|im_start|>"
    [row] = prepare(engine, text).rows
    assert row.ids.tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("template", "code", "said"),
    [
        (None, "no_chat_template", "no chat template"),
        (ALTERNATING, "chat_template_failed", "roles must alternate"),
        (ESCAPING, "chat_template_failed", "unsafe"),
        ("{{ strftime_now('%d %b %Y') }}", "chat_template_failed", "date_of_today"),
    ],
)
def test_a_chat_that_cannot_be_written_out_fails_alone(
    engine: GenerateEngine, monkeypatch: pytest.MonkeyPatch, template: str | None, code: str, said: str
) -> None:
    with_template(engine, monkeypatch, template)
    bad = {"messages": [{"role": "assistant", "content": "I begin"}]}
    prepared = engine.prepare(["a prompt", bad, "another"], parse_params("generate", {}))
    assert [(place, error.item_code) for place, error in prepared.errors.items()] == [(1, code)]
    assert said in prepared.errors[1].message
    assert (prepared.lengths > 0).tolist() == [True, False, True]


def test_a_chat_does_not_change_with_the_date(engine: GenerateEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    dated = (
        "{%- if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}{% else %}"
        "{% set date = '26 Jul 2024' %}{% endif %}\n  {% macro today() %}{{ strftime_now is defined }}{% endmacro %}"
        "{{ date }} {{ today() }}: {{ messages[0]['content'] }}"
    )
    with_template(engine, monkeypatch, dated)
    [row] = prepare(engine, chat("Hi")).rows
    assert engine._tokenizer.text(row.ids.tolist()) == "26 Jul 2024 False: Hi"


def test_a_prompt_needs_room_for_what_follows(engine: GenerateEngine) -> None:
    long = "one two three four " * 100  # 400 tokens, and the model takes 256
    assert prepare(engine, long, max_new_tokens=100).errors[0].item_code == "too_long"
    [row] = (prepared := prepare(engine, long, max_new_tokens=100, truncate=True)).rows
    assert prepared.truncated.tolist() == [True]
    assert prepared.lengths.tolist() == [256]
    # The beginning is cut; the token that begins every text, here that of every turn, stays.
    [whole] = prepare(engine, chat(long), max_new_tokens=1, truncate=False).errors.values()
    assert "beside max_new_tokens the model takes 255" in whole.message
    [turn] = prepare(engine, chat(long), max_new_tokens=100, truncate=True).rows
    tokenizer = engine._tokenizer._tokenizer
    ids = tokenizer.apply_chat_template(chat(long)["messages"], add_generation_prompt=True)["input_ids"]
    assert turn.ids.tolist() == [tokenizer.bos_token_id, *ids[-155:]]
    assert row.ids.tolist() == tokenizer(long)["input_ids"][-156:]
    for truncate in (True, False):
        [none] = prepare(engine, "a", max_new_tokens=256, truncate=truncate).errors.values()
        assert none.item_code == "too_long"


def test_a_text_ends_before_the_first_stop_string(engine: GenerateEngine) -> None:
    whole = generate(engine, "Once upon a time", max_new_tokens=40)
    assert (whole["finish_reason"], whole["new_tokens"], whole["prompt_tokens"]) == ("length", 40, 4)
    text = whole["text"]
    for start, stop in ((5, 6), (11, 30), (20, 50)):  # one character, and strings that span tokens
        string = text[start:stop]
        found = generate(engine, "Once upon a time", max_new_tokens=40, stop=["never said", string])
        assert found["text"] == text[: text.find(string)]
        assert found["finish_reason"] == "stop"
        assert found["new_tokens"] < 40
    unmoved = generate(engine, "Once upon a time", max_new_tokens=40, stop=["never said"])
    assert unmoved == whole


def test_a_stop_string_is_seen_with_its_last_token(engine: GenerateEngine) -> None:
    text = "a thing, naïve 日本語 🙂 done"
    tokens = engine._tokenizer._backend.encode(text).ids
    for string in ("thing, na", "ïve", "日本", "🙂", "🙂 do"):
        stop = StopStrings([string], engine._tokenizer)
        seen = [stop.reached(tokens[:count]) for count in range(1, len(tokens) + 1)]
        first = seen.index(True)
        assert string in engine._tokenizer.text(tokens[: first + 1])
        assert string not in engine._tokenizer.text(tokens[:first])


def test_a_stop_string_is_seen_across_tokens_that_say_nothing(engine: GenerateEngine) -> None:
    before, after = (engine._tokenizer._backend.encode(text).ids for text in ("once upon", " a time"))
    special = engine._tokenizer._tokenizer.eos_token_id
    beyond = 60_000  # a model may have more outputs than there are tokens
    for silent in (special, beyond):
        assert StopStrings(["upon a time"], engine._tokenizer).reached([*before, *[silent] * 40, *after])


def test_an_ending_token_is_counted_and_not_said(engine: GenerateEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "Once upon a time"
    tokens = engine._decoder.continued(prepare(engine, prompt, max_new_tokens=20).rows)[0].tokens
    first = next(place for place in range(3, 20) if tokens[place] not in tokens[:place])
    ends = frozenset({tokens[first]})
    monkeypatch.setattr(engine, "_ends", ends)
    monkeypatch.setattr(engine, "_decoder", Decoder(engine._module, ends))
    found = generate(engine, prompt, max_new_tokens=20)
    assert found == {
        "text": engine._tokenizer.text(tokens[:first]),
        "finish_reason": "stop",
        "prompt_tokens": 4,
        "new_tokens": first + 1,
    }


def test_ending_tokens_are_those_of_the_generation_config() -> None:
    assert _ends(GenerationConfig(eos_token_id=[3, 4]), 5) == {3, 4}
    assert _ends(GenerationConfig(eos_token_id=3), 5) == {3}
    assert _ends(GenerationConfig(), 5) == {5}
    assert _ends(None, None) == set()


@pytest.fixture
def prompts() -> list[Prompt]:
    """Of all lengths; one needs a single token, most leave at different times."""
    chance = np.random.default_rng(7)
    sizes = zip([1, 40, 3, 17, 17, 60, 2, 9, 33, 5, 12], [9, 1, 20, 5, 14, 3, 11, 20, 2, 16, 7], strict=True)
    return [Prompt(chance.integers(300, 1_900, size).astype(np.int32), new) for size, new in sizes]


def alone(engine: GenerateEngine, prompt: Prompt) -> list[int]:
    """By the library's own loop."""
    ids = torch.tensor([prompt.ids.tolist()])
    out = engine._module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=prompt.new_tokens)
    return out[0, len(prompt.ids) :].tolist()


@pytest.mark.parametrize(("slots", "prefill"), [(1, 512), (3, 512), (4, 16), (64, 7), (64, 512)])
def test_rows_leave_and_enter_without_a_trace(
    engine: GenerateEngine, prompts: list[Prompt], slots: int, prefill: int
) -> None:
    decoder = Decoder(engine._module, engine._ends, slots)
    decoder._prefill = prefill
    widths: list[int] = []
    forward = decoder.forward
    decoder.forward = lambda ids, cache: widths.append(len(ids)) or forward(ids, cache)
    found = decoder.continued(prompts)
    assert [row.tokens for row in found] == [alone(engine, prompt) for prompt in prompts]
    assert max(widths) <= slots
    assert len(set(widths)) > (slots > 1)


def test_a_pass_can_be_let_go_in_a_long_prompt(engine: GenerateEngine) -> None:
    decoder = Decoder(engine._module, engine._ends)
    decoder._prefill = 16
    calls = 0

    def checkpoint() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise CancelledError

    with pytest.raises(CancelledError):
        decoder.continued([Prompt(np.arange(100, 200, dtype=np.int32), 5)], checkpoint=checkpoint)
    assert calls == 4


def test_made_up_rows_do_all_of_their_work(engine: GenerateEngine) -> None:
    everything = Decoder(engine._module, frozenset(range(50_000)))
    for row in everything.continued(engine.synthetic(24, 3)):
        assert (len(row.prompt.ids), len(row.tokens)) == (12, 12)


def test_what_continues_no_text_is_refused(encoder: Path) -> None:
    with pytest.raises(ModelLoadFailed) as failed:
        load(encoder)
    assert str(encoder) in str(failed.value)
    assert "\n" not in str(failed.value)


SMALL = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
KINDS = {
    # Swallows the cache.
    "openai-gpt": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    # Take no place of a token in its text, so that padding moves it.
    "trocr": {"d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
    "git": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "opt": {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "llama": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.BF16, Quantization.INT8])
def test_a_model_that_padding_or_a_cache_leads_astray_is_refused(
    tmp_path: Path, kind: str, quantization: Quantization
) -> None:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **KINDS[kind]))
    for weight in module.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    module.save_pretrained(tmp_path)
    if kind in ("opt", "llama", "bloom"):
        assert load_causal(tmp_path, plain(quantization), "cpu").config.model_type == kind
    else:
        with pytest.raises(ModelLoadFailed, match="alone") as failed:
            load_causal(tmp_path, plain(quantization), "cpu")
        assert "\n" not in str(failed.value)


def test_settings_that_are_not_applied_are_named(
    language_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in language_model.iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).symlink_to(file)
    GenerationConfig(
        eos_token_id=[2, 7], repetition_penalty=1.3, num_beams=4, min_length=5, do_sample=True
    ).save_pretrained(tmp_path)
    assert load(tmp_path)._ends == {2, 7}
    [record] = caplog.records
    assert record.getMessage().endswith(
        "its generation config asks for repetition_penalty, num_beams, min_length: not applied"
    )
