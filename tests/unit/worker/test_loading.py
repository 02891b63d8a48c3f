import json
import logging
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers import logging as transformers_logging

from contracts.errors import ModelLoadFailed
from contracts.names import Quantization
from tests.models import MINILM, variant
from worker.engines.pairs import PairTokenizer
from worker.engines.text import TextTokenizer, token_limit
from worker.loading import load_module, load_tokenizer, weight_bytes

IDS = torch.tensor([[101, 2023, 2003, 1037, 3231, 102]])
CONFIG = json.loads((MINILM / "config.json").read_text())


def hidden(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        states: torch.Tensor = module(input_ids=IDS).last_hidden_state.float()
    return states.flatten()


@pytest.mark.parametrize(
    ("quantization", "weight", "least", "likeness"),
    [
        ("none", torch.float32, 90_861_056, 1 - 1e-6),
        ("bf16", torch.bfloat16, 45_434_624, 0.999),
        ("fp16", torch.float16, 45_434_624, 0.999),
        ("int8", torch.int8, 34_670_336, 0.99),
        # 11 million weights at half a byte, the rest in bf16; then scales for every 64 of them, in float32 or 8 bits.
        ("nf4", torch.uint8, 29_288_192 + 10_764_288 // 64 * 4, 0.9),
        ("fp4", torch.uint8, 29_288_192 + 10_764_288 // 64 * 4, 0.9),
        ("nf4-double", torch.uint8, 29_288_192 + 10_764_288 // 64, 0.9),
        ("fp4-double", torch.uint8, 29_288_192 + 10_764_288 // 64, 0.9),
    ],
)
def test_every_quantization_loads_and_is_measured(
    quantization: str, weight: torch.dtype, least: int, likeness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object) -> None:
        raise AssertionError(f"the network was asked for {args}")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    module = load_module(MINILM, Quantization(quantization), "cpu")
    assert module.training is False
    assert module.encoder.layer[0].output.dense.weight.dtype == weight
    assert least <= weight_bytes(module) < least * 1.01
    exact = hidden(load_module(MINILM, Quantization.NONE, "cpu"))
    assert torch.cosine_similarity(hidden(module), exact, dim=0) > likeness


def test_loading_says_nothing(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for quantization in (Quantization.NF4, Quantization.INT8):
            hidden(load_module(MINILM, quantization, "cpu"))
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.FP4_DOUBLE, Quantization.INT8])
def test_what_was_saved_quantized_loads_as_that_and_as_nothing_else(quantization: Quantization, tmp_path: Path) -> None:
    load_module(MINILM, quantization, "cpu").save_pretrained(tmp_path)
    again = load_module(tmp_path, quantization, "cpu")
    torch.testing.assert_close(hidden(again), hidden(load_module(MINILM, quantization, "cpu")), atol=0.02, rtol=0)
    with pytest.raises(ModelLoadFailed, match=f"stored as {quantization}"):
        load_module(tmp_path, Quantization.NONE, "cpu")


def broken_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights")


def pickled(folder: Path) -> None:
    torch.save(load_file(MINILM / "model.safetensors"), folder / "pytorch_model.bin")


def partial(folder: Path) -> None:
    weights = load_file(MINILM / "model.safetensors")
    del weights["encoder.layer.3.output.dense.weight"], weights["pooler.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (CONFIG, nothing, "model.safetensors"),
        (CONFIG, pickled, "model.safetensors"),
        (CONFIG, broken_weights, "SafetensorError"),
        (CONFIG, partial, r"1 weights are missing, the first of them encoder\.layer\.3\.output\.dense\.weight"),
        (CONFIG | {"model_type": "unheard-of"}, nothing, "unheard-of"),
        (CONFIG | {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, nothing, "custom code"),
        (CONFIG | {"quantization_config": {"quant_method": "gptq", "bits": 4}}, nothing, "'gptq'"),
    ],
)
def test_what_cannot_be_loaded_says_why_in_one_line(
    config: dict[str, Any], change: Any, said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    change(tmp_path)
    with pytest.raises(ModelLoadFailed, match=said) as failed:
        load_module(tmp_path, Quantization.NONE, "cpu")
    assert str(tmp_path) in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ModelLoadFailed):
        load_module(MINILM, Quantization.NONE, "cuda:7")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelLoadFailed, match="no vocabulary; add tokenizer.json"):
        load_tokenizer(tmp_path)


def test_an_input_must_have_a_longest_length(tmp_path: Path) -> None:
    tokenizer = json.loads((MINILM / "tokenizer_config.json").read_text())
    del tokenizer["model_max_length"]
    folder = variant(tmp_path, {"tokenizer_config.json": tokenizer})
    config = load_module(MINILM, Quantization.NONE, "cpu").config
    assert TextTokenizer(folder, config).limit == 512
    config.max_position_embeddings = -1
    assert TextTokenizer(folder, config, max_tokens=32).limit == 32
    with pytest.raises(ModelLoadFailed, match="set model_max_length"):
        TextTokenizer(folder, config)


@pytest.fixture
def many_switches():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("many_switches")
def test_models_that_load_at_once_do_not_mix_their_dtypes(encoder: Path) -> None:
    def dtypes(quantization: Quantization) -> set[torch.dtype]:
        return {p.dtype for _ in range(10) for p in load_module(encoder, quantization, "cpu").parameters()}

    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    with ThreadPoolExecutor(2) as threads:
        exact, half = threads.map(dtypes, (Quantization.NONE, Quantization.BF16))
    assert (exact, half) == ({torch.float32}, {torch.bfloat16})
    assert torch.get_default_dtype() == torch.float32
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


@pytest.mark.usefixtures("many_switches")
def test_a_pass_never_sees_another_models_dtype(encoder: Path) -> None:
    """While a model of bf16 loads, torch makes that the dtype of whatever names none, in every thread."""
    module = load_module(encoder, Quantization.NONE, "cpu")
    stop = threading.Event()
    seen = set()

    def load() -> None:
        while not stop.is_set():
            load_module(encoder, Quantization.BF16, "cpu")

    def watch(*_: object) -> None:
        for _ in range(20_000):
            seen.add(torch.get_default_dtype())

    module.encoder.layer[0].register_forward_pre_hook(watch)
    loader = threading.Thread(target=load)
    loader.start()
    try:
        for _ in range(50):
            hidden(module)
    finally:
        stop.set()
        loader.join()
    assert seen == {torch.float32}


def test_a_pass_that_fails_holds_no_other_up() -> None:
    module = load_module(MINILM, Quantization.NONE, "cpu")
    with pytest.raises(IndexError):
        module(input_ids=torch.tensor([[10**6]]))
    with ThreadPoolExecutor(1) as thread:
        thread.submit(load_module, MINILM, Quantization.BF16, "cpu").result(timeout=300)


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


@pytest.mark.parametrize(
    ("kind", "config", "limit"),
    [
        ("phi3", {"original_max_position_embeddings": 24, "rope_parameters": LONGROPE}, 24),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, 96),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, 200),
    ],
)
def test_positions_do_not_depend_on_the_length_of_neighbours(kind: str, config: dict[str, Any], limit: int) -> None:
    """Some models stretch all positions of a pass as soon as one text of it is long: no text may be that long."""
    small = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 96, "pad_token_id": 0}
    found = AutoConfig.for_model(kind, **small, **config)
    assert token_limit(MINILM, 500, found) == min(limit, 96)
    assert token_limit(MINILM, 500, found, 200) == limit
    assert TextTokenizer(MINILM, found, max_tokens=200).limit == limit
    assert PairTokenizer(MINILM, found, max_tokens=200).limit == limit
    assert token_limit(MINILM, 500, found, 8) == 8
