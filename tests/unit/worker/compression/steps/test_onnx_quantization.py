from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

from benchmarks.texts import stdlib_docstrings
from contracts.errors import CompressionFailed
from contracts.names import Quantization, Task
from contracts.recipes import Quantize
from tests.graphs import cut, exported, quantized, run
from tests.models import model_spec
from worker.engines.embed import EmbedEngine
from worker.onnx import GRAPH


@pytest.fixture(scope="module")
def graph(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the first layer of MiniLM."""
    folder = tmp_path_factory.mktemp("small")
    return exported(cut(encoder, folder / "cut"), folder)


def vectors(folder: Path, quantization: str, texts: list[str]) -> np.ndarray:
    spec = model_spec(engine="embed", task="embed", source="hf:model", quantization=quantization)
    engine = EmbedEngine.load(spec, folder, "cpu")
    rows = engine.prepare(texts, {"truncate": True}).rows
    rows = sorted(rows, key=len)
    return np.concatenate([engine.run(rows[start : start + 16], {}) for start in range(0, len(rows), 16)])


@pytest.mark.parametrize("size", ["", pytest.param("real_", marks=pytest.mark.verify)], ids=["tiny", "real"])
def test_a_quarter_of_the_bytes_and_nearly_the_same_vectors(size: str, request: pytest.FixtureRequest) -> None:
    onnx_embedder: Path = request.getfixturevalue(f"{size}onnx_embedder")
    onnx_int8_embedder: Path = request.getfixturevalue(f"{size}onnx_int8_embedder")
    encoder: Path = request.getfixturevalue(f"{size}encoder")
    before, after = ((folder / GRAPH).stat().st_size for folder in (onnx_embedder, onnx_int8_embedder))
    assert after <= 0.30 * (encoder / "model.safetensors").stat().st_size
    assert after <= 0.30 * before
    texts = stdlib_docstrings(8000 // 2)[::40]
    cosines = (vectors(onnx_embedder, "none", texts) * vectors(onnx_int8_embedder, "int8", texts)).sum(1)
    assert cosines.mean() >= 0.99


def test_scales_are_shared_as_asked(graph: Path, tmp_path: Path) -> None:
    sizes, zeros = {}, {}
    for name, options in {
        "default": {},
        "tensor": {"granularity": "tensor"},
        "asymmetric": {"symmetric": False},
    }.items():
        model = onnx.load(str(quantized(graph, tmp_path / name, **options) / GRAPH))
        tensors = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
        weights = [node.input[1] for node in model.graph.node if node.op_type == "MatMulInteger"]
        assert weights
        assert {tensors[weight].dtype for weight in weights} == {np.dtype(np.int8)}
        stems = [weight.removesuffix("_quantized") for weight in weights]
        sizes[name] = {
            tensors[f"{stem}_scale"].size == tensors[weight].shape[1]
            for stem, weight in zip(stems, weights, strict=True)
        }
        zeros[name] = any(tensors[f"{stem}_zero_point"].any() for stem in stems)
    assert sizes == {"default": {True}, "tensor": {False}, "asymmetric": {True}}
    assert zeros == {"default": False, "tensor": False, "asymmetric": True}


def test_the_same_graph_gives_the_same_bytes(graph: Path, tmp_path: Path) -> None:
    contents = [(quantized(graph, tmp_path / name) / GRAPH).read_bytes() for name in "ab"]
    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in contents[0]


def test_what_is_beside_the_graph_comes_along(graph: Path, tmp_path: Path) -> None:
    before = {path.relative_to(graph): path.read_bytes() for path in graph.rglob("*") if path.is_file()}
    folder = quantized(graph, tmp_path)
    after = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} == {Path(GRAPH)}
    assert before.keys() == after.keys()
    assert before == {path.relative_to(graph): path.read_bytes() for path in graph.rglob("*") if path.is_file()}


def test_the_outcome_says_what_it_is(graph: Path, tmp_path: Path) -> None:
    _, outcome = run(Quantize(method="int8"), graph, tmp_path / "int8", Task.EMBED)
    assert outcome.quantization is Quantization.INT8
    assert any("depends a little on its neighbours" in note for note in outcome.notes)


def test_nothing_is_quantized_twice(graph: Path, tmp_path: Path) -> None:
    once = quantized(graph, tmp_path)
    with pytest.raises(CompressionFailed, match="integers already"):
        quantized(once, tmp_path / "again")


def test_a_graph_knows_no_four_bits(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressionFailed, match="quantized as int8"):
        run(Quantize(method="nf4"), graph, tmp_path / "nf4", Task.EMBED)
