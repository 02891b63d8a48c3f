import json
import resource
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks.texts import sentences
from contracts.errors import ModelLoadFailed
from contracts.names import Quantization, Task
from contracts.params import parse_params
from tests.models import model_spec
from worker import budget
from worker.engines.base import Engine
from worker.engines.classify import ClassifyEngine
from worker.engines.embed import EmbedEngine
from worker.engines.generate import GenerateEngine
from worker.forward import forward
from worker.loading import load_model, load_module, weight_bytes
from worker.onnx import GRAPH, OnnxModule
from worker.outputs import OutputForm
from worker.variants import plain

IDS = torch.tensor([[101, 2023, 2003, 1037, 3231, 102]])


@pytest.fixture
def copy(onnx_embedder: Path, tmp_path: Path) -> Path:
    """The graph's folder, which a test may spoil."""
    return Path(shutil.copytree(onnx_embedder, tmp_path / "copy"))


def embedder(folder: Path, quantization: str = "none", device: str = "cpu") -> Any:
    spec = model_spec(engine="embed", task="embed", source="hf:model", quantization=quantization)
    return EmbedEngine.load(spec, folder, device)


def test_a_graph_is_called_as_the_module(encoder: Path, onnx_embedder: Path) -> None:
    graph: Any = load_model(onnx_embedder, plain(Quantization.NONE), "cpu")
    module: Any = load_model(encoder, plain(Quantization.NONE), "cpu")
    assert isinstance(graph, OnnxModule)
    assert graph.config.hidden_size == module.config.hidden_size
    assert graph.device == module.device
    ids = IDS.repeat(3, 1)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5])
    with torch.inference_mode():
        for given in ({}, {"attention_mask": mask}, {"attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}):
            expected = module(input_ids=ids, return_dict=True, **given).last_hidden_state
            found = graph(input_ids=ids, return_dict=True, **given).last_hidden_state
            real = mask.bool() if given else torch.ones_like(ids).bool()
            torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)


def test_an_output_is_its_callers(onnx_embedder: Path) -> None:
    graph: Any = load_model(onnx_embedder, plain(Quantization.NONE), "cpu")
    first = graph(input_ids=IDS).last_hidden_state
    kept = first.clone()
    for _ in range(3):
        graph(input_ids=IDS.flip(1))
    torch.testing.assert_close(first, kept, atol=0, rtol=0)


def test_ids_that_lie_apart_in_memory_are_read_in_order(onnx_embedder: Path) -> None:
    graph: Any = load_model(onnx_embedder, plain(Quantization.NONE), "cpu")
    wide = torch.stack([IDS[0], IDS[0] * 0], dim=1).T
    found = graph(input_ids=wide.T.contiguous().T[:1]).last_hidden_state
    torch.testing.assert_close(found, graph(input_ids=IDS).last_hidden_state, atol=0, rtol=0)


def test_memory_is_what_the_files_take(onnx_embedder: Path, onnx_int8_embedder: Path) -> None:
    for folder, quantization in ((onnx_embedder, Quantization.NONE), (onnx_int8_embedder, Quantization.INT8)):
        assert weight_bytes(load_model(folder, plain(quantization), "cpu")) == (folder / GRAPH).stat().st_size


def test_safetensors_go_before_a_graph(encoder: Path, copy: Path) -> None:
    (copy / "model.safetensors").symlink_to(encoder / "model.safetensors")
    assert not isinstance(load_model(copy, plain(Quantization.NONE), "cpu"), OnnxModule)


def test_a_graph_is_no_module(onnx_embedder: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="has no torch module"):
        load_module(onnx_embedder, Quantization.NONE, "cpu")


@pytest.mark.parametrize(
    ("folder", "quantization", "reason"),
    [
        ("onnx_embedder", "int8", "the weights are stored as none; register the model as that"),
        ("onnx_int8_embedder", "none", "the weights are stored as int8; register the model as that"),
        ("onnx_embedder", "nf4", "an ONNX graph is none or int8, not nf4"),
        ("onnx_embedder", "bf16", "an ONNX graph is none or int8, not bf16"),
    ],
)
def test_a_graph_is_registered_as_what_it_is(
    folder: str, quantization: str, reason: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ModelLoadFailed, match=reason):
        load_model(request.getfixturevalue(folder), plain(Quantization(quantization)), "cpu")


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other_bytes(file: Path) -> None:
    file.write_bytes(b"no graph")


def other_input(file: Path) -> None:
    model = onnx.load(str(file))
    model.graph.input.append(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["n", 3]))
    onnx.save(model, str(file))


def other_output(file: Path) -> None:
    model = onnx.load(str(file))
    for node in model.graph.node:
        node.output[:] = ["logits" if name == "last_hidden_state" else name for name in node.output]
    model.graph.output[0].name = "logits"
    onnx.save(model, str(file))


def fixed_axes(file: Path) -> None:
    model = onnx.load(str(file))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(model, str(file))


def weights_elsewhere(file: Path) -> None:
    onnx.save(
        onnx.load(str(file)), str(file), save_as_external_data=True, location="weights.bin", size_threshold=10_000
    )
    (file.parent / "weights.bin").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_short, GRAPH),
        (other_bytes, GRAPH),
        (other_input, "the graph takes pixels"),
        (other_output, "the graph gives logits; what is asked for is last_hidden_state"),
        (fixed_axes, r"\['texts', 8\]"),
        (weights_elsewhere, "its weights are in weights.bin, which is not beside it"),
    ],
)
def test_a_graph_that_cannot_be_used_says_why_in_one_line(
    copy: Path, capfd: pytest.CaptureFixture[str], damage: Any, reason: str
) -> None:
    damage(copy / GRAPH)
    with pytest.raises(ModelLoadFailed, match=reason) as failed:
        embedder(copy)
    assert "\n" not in str(failed.value)
    assert str(copy) in str(failed.value)
    assert capfd.readouterr() == ("", "")


def test_weights_may_lie_beside_the_graph(encoder: Path, copy: Path) -> None:
    file = copy / GRAPH
    onnx.save(
        onnx.load(str(file)), str(file), save_as_external_data=True, location=f"{GRAPH}.data", size_threshold=10_000
    )
    engine = embedder(copy)
    assert engine.memory_bytes == sum(path.stat().st_size for path in copy.glob(f"{GRAPH}*"))
    assert (copy / GRAPH).stat().st_size < (copy / f"{GRAPH}.data").stat().st_size
    rows = engine.prepare(sentences(3), {}).rows
    np.testing.assert_allclose(engine.run(rows, {}), embedder(encoder).run(rows, {}), atol=1e-5)


def test_a_config_of_another_model_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    with pytest.raises(ModelLoadFailed, match="last_hidden_state has 64 numbers, and the config makes it 128"):
        embedder(copy)


def test_labels_that_are_too_few_are_refused(onnx_classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(onnx_classifier, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    del config["id2label"]["4"]
    (folder / "config.json").write_text(json.dumps(config))
    spec = model_spec(engine="classify", task="classify", source="hf:model")
    with pytest.raises(ModelLoadFailed, match="logits has 5 numbers, and the config makes it 4"):
        ClassifyEngine.load(spec, folder, "cpu")


def test_a_graph_does_not_generate(onnx_embedder: Path) -> None:
    spec = model_spec(engine="generate", task="generate", source="hf:model")
    with pytest.raises(ModelLoadFailed, match="does not generate here; register the torch model"):
        GenerateEngine.load(spec, onnx_embedder, "cpu")


def test_a_pass_that_does_not_fit_into_memory_is_told_from_others(onnx_embedder: Path) -> None:
    engine = embedder(onnx_embedder)
    rows = engine.prepare(sentences(64), {}).rows * 64
    assert len(engine.run(rows[:2], {})) == 2
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 300_000_000, hard))
    try:
        with pytest.raises(MemoryError) as failed:
            engine.run(rows, {})
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert engine.ran_out_of_memory(failed.value)
    assert "\n" not in str(failed.value)
    engine.free_memory()
    assert len(engine.run(rows[:2], {})) == 2


def test_ids_beyond_the_vocabulary_fail_alone(onnx_embedder: Path) -> None:
    engine = embedder(onnx_embedder)
    rows = engine.prepare(["a", "b", "c"], {}).rows
    rows[1] = np.full(3, 10**6, np.int32)
    params = parse_params(Task.EMBED, {})
    found = forward(engine, rows, params, OutputForm(Task.EMBED, params, "tried"))
    assert found.places == [0, 2]
    assert {place: error.item_code for place, error in found.errors.items()} == {1: "engine_error"}


@pytest.mark.parametrize(
    "graph", ["onnx_int8_embedder", pytest.param("real_onnx_int8_embedder", marks=pytest.mark.verify)]
)
def test_memory_does_not_grow_with_each_new_shape(graph: str, request: pytest.FixtureRequest) -> None:
    engine = embedder(request.getfixturevalue(graph), "int8")

    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def passes(start: int) -> None:
        for length in range(start, 200, 7):
            engine.run(engine.synthetic(length, max(2000 // length, 1)), {})

    passes(3)
    before = held()
    for start in range(4, 10):
        passes(start)
    assert held() - before < 30_000_000


def test_a_budget_is_measured(onnx_int8_embedder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "LARGEST", 1024)
    found = budget.measure(embedder(onnx_int8_embedder, "int8"), {})
    assert 512 <= found.tokens <= 1024
    assert found.tokens_per_second > 0


def test_threads_that_compute_take_after_the_one_that_loads(onnx_embedder: Path) -> None:
    threads, before = torch.get_num_threads(), {*Path("/proc/self/task").iterdir()}
    torch.set_num_threads(2)
    found: list[Engine] = []

    def load() -> None:
        import os

        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
        found.append(embedder(onnx_embedder))

    try:
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(threads)
    stats = [(task / "stat").read_text() for task in {*Path("/proc/self/task").iterdir()} - before]
    assert 7 in [int(stat.rpartition(")")[2].split()[16]) for stat in stats]
    assert found


def test_a_graph_needs_the_gpus_own_build(onnx_embedder: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    with pytest.raises(ModelLoadFailed, match="install onnxruntime-gpu in place of onnxruntime"):
        embedder(onnx_embedder, device="cuda:0")


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs a CUDA GPU and onnxruntime-gpu",
)
def test_a_gpu_gives_what_a_cpu_gives(onnx_embedder: Path) -> None:
    engines = [embedder(onnx_embedder, device=device) for device in ("cpu", "cuda:0")]
    rows = engines[0].prepare(sentences(50), {}).rows
    one, other = (engine.run(rows, {}) for engine in engines)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)
