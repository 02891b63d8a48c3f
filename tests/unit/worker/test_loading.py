import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from contracts.errors import ModelLoadFailed
from contracts.names import Quantization
from tests.models import MINILM, variant
from worker.engines.text import TextTokenizer
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
