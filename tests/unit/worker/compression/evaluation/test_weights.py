"""Parameters as files hold them, packed or not."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file

from tests.models import MINILM
from tests.steps import run_step
from tests.weights import write_gguf
from worker.compression.evaluation.weights import count, size_bytes

LINEAR = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
"""Weights of MiniLM's linear layers."""


def test_floats(tmp_path: Path) -> None:
    stored = load_file(MINILM / "model.safetensors")
    expected = sum(tensor.numel() for tensor in stored.values() if tensor.is_floating_point())
    parameters, nonzeros = count(MINILM)
    assert parameters == expected == 22_713_216
    assert 0.999 < nonzeros / parameters <= 1
    stored["encoder.layer.0.output.dense.weight"][:, :100] = 0
    save_file(stored, tmp_path / "model.safetensors")
    assert nonzeros - count(tmp_path)[1] == 100 * 384


@pytest.mark.parametrize("method", ["nf4", "int8", "bf16"])
def test_a_packed_weight_counts_as_what_it_stands_for(method: str, tmp_path: Path) -> None:
    run_step({"step": "quantize", "method": method}, MINILM, tmp_path / "out")
    parameters, nonzeros = count(tmp_path / "out")
    assert parameters == count(MINILM)[0]
    lost = parameters - nonzeros
    # nf4 has a zero among its sixteen values, which the weights near zero become; int8 one of 255.
    least, most = {"nf4": (0.05, 0.2), "int8": (0.005, 0.03), "bf16": (0, 0.001)}[method]
    assert least <= lost / LINEAR <= most
    assert size_bytes(tmp_path / "out") < 0.6 * size_bytes(MINILM)


def test_zeros_of_a_gguf_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf")
    assert count(tmp_path) == (10 * 32 + 64 * 32 + 30, 64 * 32 + 30)


def test_a_quantized_graph(tmp_path: Path) -> None:
    whole = np.array([[3, 5, 3], [3, -7, 0]], np.int8)
    tensors = {
        "a_quantized": whole,
        "a_scale": np.float32([0.1]),
        "a_zero_point": np.int8([3]),
        "b_quantized": whole,
        "b_scale": np.float32([0.1, 0.1, 0.1]),
        "b_zero_point": np.int8([3, 5, 0]),
        "bias": np.float32([0, 1, 2]),
        "axes": np.int64([0, 1]),
        "half": np.float32(0.5),
    }
    initializers = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph([], "small", [], [], initializers)
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    # Of a, three are at the zero point; of b, by column: 3 3, 5, 0.
    assert count(tmp_path) == (6 + 6 + 3, 3 + 2 + 2)


def test_nothing_counts_twice(tmp_path: Path) -> None:
    save_file({"half": torch.zeros(3, dtype=torch.bfloat16), "places": torch.arange(5)}, tmp_path / "a.safetensors")
    save_file({"other": torch.ones(4)}, tmp_path / "b.safetensors")
    assert count(tmp_path) == (7, 4)
