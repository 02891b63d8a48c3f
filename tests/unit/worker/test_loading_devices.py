"""A model that is too large for one device, in parts on two: what the CPU's limited memory does not hold is on disk."""

import gc
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contracts.errors import ModelLoadFailed
from contracts.names import Quantization
from contracts.params import parse_params
from tests.models import MINILM, model_spec
from worker.engines.embed import EmbedEngine
from worker.engines.generate import GenerateEngine
from worker.layout import Layout, OffloadFolder, input_device
from worker.loading import load_module, weight_bytes

HALF_OF_SMOLLM2 = 165_000_000
HALF_OF_A_TINY_ONE = 600_000
HALF_OF_MINILM = 60_000_000
"""Bytes on the CPU, where the largest of the layers that are read from the disk has to find room as well."""
IDS = torch.tensor([[101, 2023, 2003, 1037, 3231, 102]])


@pytest.fixture
def parts(tmp_path: Path) -> Any:
    """MiniLM in parts."""
    return load_module(MINILM, Quantization.NONE, Layout({"cpu": HALF_OF_MINILM}, tmp_path / "offload"))


@pytest.mark.parametrize(
    ("model", "half"),
    [
        ("language_model", HALF_OF_A_TINY_ONE),
        pytest.param("real_smollm2", HALF_OF_SMOLLM2, marks=pytest.mark.verify),
    ],
)
def test_a_language_model_in_parts_says_the_same(
    model: str, half: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    spec = model_spec(task="generate", engine="generate", quantization="bf16")
    params = parse_params("generate", {"max_new_tokens": 8})
    prompts = ["The capital of France is", "def fibonacci(n):", "Once upon a time, in a"]

    def said(device: str | Layout) -> list[Any]:
        engine = GenerateEngine.load(spec, folder, device)
        if isinstance(device, Layout):
            assert set(engine._module.hf_device_map.values()) == {"cpu", "disk"}
            assert engine.memory_bytes < half
        return list(engine.run(engine.prepare(prompts, params).rows, params))

    assert said(Layout({"cpu": half}, tmp_path)) == said("cpu")


def test_vectors_of_an_encoder_in_parts_are_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    params = parse_params("embed", {})
    texts = ["a short text", "another one that is a little longer", "x"]

    def vectors(device: str | Layout) -> Any:
        engine = EmbedEngine.load(model_spec(), MINILM, device)
        return engine.run(engine.prepare(texts, params).rows, params)

    with caplog.at_level(logging.INFO, "worker"):
        found = vectors(Layout({"cpu": HALF_OF_MINILM}, tmp_path / "offload"))
    np.testing.assert_allclose(found, vectors("cpu"), atol=1e-6)
    (said,) = [message for message in caplog.messages if "laid over" in message]
    assert re.search(r"laid over several: cpu 48 MB, disk 43 MB$", said)


def test_what_is_on_disk_takes_no_memory(parts: Any) -> None:
    assert set(parts.hf_device_map.values()) == {"cpu", "disk"}
    assert 47_000_000 < weight_bytes(parts) < 49_000_000


def test_inputs_go_to_memory_when_the_first_layer_is_on_disk(tmp_path: Path) -> None:
    nothing = load_module(MINILM, Quantization.NONE, Layout({"cpu": 40_000_000}, tmp_path))
    assert nothing.device.type == "meta"
    assert input_device(nothing) == torch.device("cpu")
    with torch.inference_mode():
        assert nothing(input_ids=IDS.to(input_device(nothing))).last_hidden_state.isfinite().all()


def test_no_model_loads_during_a_pass_in_parts(parts: Any) -> None:
    seen = set()
    loaded = threading.Event()

    def watch(*_: object) -> None:
        loading.submit(load_module, MINILM, Quantization.BF16, "cpu").add_done_callback(lambda _: loaded.set())
        for _ in range(200_000):
            seen.add(torch.get_default_dtype())
        assert not loaded.is_set()

    with ThreadPoolExecutor(1) as loading, torch.inference_mode():
        parts.encoder.layer[5].register_forward_pre_hook(watch)
        parts(input_ids=IDS)
        assert loaded.wait(60)
    assert seen == {torch.float32}


def test_a_pass_in_parts_that_fails_holds_no_other_up(parts: Any) -> None:
    with pytest.raises(IndexError):
        parts(input_ids=torch.tensor([[10**6]]))
    with ThreadPoolExecutor(1) as thread:
        thread.submit(load_module, MINILM, Quantization.BF16, "cpu").result(timeout=300)
    with torch.inference_mode():
        assert parts(input_ids=IDS).last_hidden_state.isfinite().all()


def test_what_bitsandbytes_packs_does_not_stay_on_disk(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="dispatched on the CPU or the disk"):
        load_module(MINILM, Quantization.NF4, Layout({"cpu": HALF_OF_MINILM}, tmp_path))
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_scratch_of_processes_that_died_is_removed_and_that_of_others_is_not(tmp_path: Path) -> None:
    held, left = OffloadFolder(tmp_path), tmp_path / "left"
    (held.folder / "weights").write_bytes(b"in use")
    left.mkdir()
    (left / "weights").write_bytes(b"of a process that was killed")
    other = OffloadFolder(tmp_path)
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == {held.folder, other.folder}
    assert (held.folder / "weights").exists()
