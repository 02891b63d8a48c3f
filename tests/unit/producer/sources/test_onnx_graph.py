import shutil

import pytest

from contracts.errors import ModelRefused
from contracts.names import Quantization, Task
from producer.sources import find_model
from tests.models import MINILM
from tests.weights import put, write_gguf


@pytest.fixture
def folder(tmp_path):
    """MiniLM's files around what stands for a graph: nobody here looks into one."""
    target = tmp_path / "model"
    shutil.copytree(MINILM, target, ignore=shutil.ignore_patterns("*.safetensors"))
    put(target, "model.onnx", "g" * 1000)
    return target


def find(folder, task=Task.EMBED, quantization=Quantization.NONE):
    return find_model(str(folder), task, quantization)


@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.INT8])
def test_a_graph_stands_in_place_of_weights(folder, quantization):
    found = find(folder, quantization=quantization)
    assert found.engine == "embed"
    assert {"model.onnx", "config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"} < {*found.files}
    assert found.memory_bytes == 1000


@pytest.mark.parametrize("names", [["model.onnx.data"], ["model.onnx_data", "model.onnx_data_1"]])
def test_weights_beside_the_graph_come_along(folder, names):
    for name in names:
        put(folder, name, "w" * 5000)
    put(folder, "other.onnx", "another")
    found = find(folder)
    assert {name for name in found.files if "onnx" in name} == {"model.onnx", *names}
    assert found.memory_bytes == 1000 + 5000 * len(names)


def test_safetensors_are_preferred(folder):
    (folder / "model.safetensors").symlink_to(MINILM / "model.safetensors")
    found = find(folder, quantization=Quantization.NF4)
    assert "model.safetensors" in found.files
    assert "model.onnx" not in found.files


def test_a_graph_is_preferred_to_gguf(folder):
    write_gguf(folder / "tiny.gguf")
    found = find(folder)
    assert "model.onnx" in found.files
    assert "tiny.gguf" not in found.files


def test_a_graph_does_not_generate(folder):
    put(folder, "config.json", '{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ModelRefused, match=r"an ONNX model does not generate here; register the torch model"):
        find(folder, Task.GENERATE)
    assert find(folder, Task.SCORE).engine == "score"


@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.BF16])
def test_a_graph_is_not_quantized_while_it_is_loaded(folder, quantization):
    with pytest.raises(ModelRefused, match=f"quantized before it is registered.*not '{quantization}'"):
        find(folder, quantization=quantization)


def test_code_of_its_own_is_refused_with_a_graph_too(folder):
    put(folder, "config.json", '{"auto_map": {"AutoModel": "modeling.Model"}}')
    with pytest.raises(ModelRefused, match="auto_map"):
        find(folder)
