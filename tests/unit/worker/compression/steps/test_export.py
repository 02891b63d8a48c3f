import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from benchmarks.texts import sentences
from contracts.errors import CompressionFailed, ModelLoadFailed
from contracts.names import Quantization, Task
from contracts.recipes import Export
from tests.graphs import cut, exported, run
from tests.models import model_spec
from worker.compression.artifacts import KINDS, save
from worker.compression.steps import export
from worker.engines.embed import EmbedEngine
from worker.engines.rerank import RerankEngine
from worker.engines.score import ScoreEngine
from worker.loading import load_model, load_module, load_tokenizer
from worker.onnx import GRAPH, OnnxModule
from worker.variants import plain


@pytest.fixture(scope="module")
def small(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layer of MiniLM."""
    return cut(encoder, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def small_graph(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(small, tmp_path_factory.mktemp("small_graph"))


def test_the_folder_is_complete_and_has_no_other_weights(small: Path, small_graph: Path) -> None:
    found = {path.relative_to(small_graph).as_posix() for path in small_graph.rglob("*") if path.is_file()}
    beside = {path.relative_to(small).as_posix() for path in small.rglob("*") if path.is_file()}
    assert found == beside - {"model.safetensors"} | {GRAPH}
    assert (small_graph / "config.json").read_bytes() == (small / "config.json").read_bytes()


def test_the_graph_has_dynamic_axes_and_one_output(small_graph: Path) -> None:
    graph = onnx.load(str(small_graph / GRAPH)).graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    assert shapes == {
        "input_ids": ["texts", "tokens"],
        "attention_mask": ["texts", "tokens"],
        "last_hidden_state": ["texts", "tokens", 64],
    }


def test_the_same_model_gives_the_same_bytes_that_name_nothing_here(
    small: Path, small_graph: Path, tmp_path: Path
) -> None:
    again = exported(small, tmp_path) / GRAPH
    content = again.read_bytes()
    assert content == (small_graph / GRAPH).read_bytes()
    assert b".py" not in content
    assert str(small).encode() not in content


def test_vectors_are_those_of_the_torch_model(small: Path, small_graph: Path) -> None:
    spec = model_spec(engine="embed", task="embed", source="hf:model")
    texts = [*sentences(40), "word " * 600]
    torch_engine, graph_engine = (EmbedEngine.load(spec, folder, "cpu") for folder in (small, small_graph))
    rows = torch_engine.prepare(texts, {"truncate": True}).rows
    for part in (rows[:1], rows[:5], rows):
        found, expected = (np.asarray(engine.run(part, {})) for engine in (graph_engine, torch_engine))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_what_gives_other_numbers_fails(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: Any = export.load_module

    def changed(*arguments: Any) -> Any:
        module = loaded(*arguments)

        def shift(_: Any, __: Any, output: Any) -> Any:
            if not torch.compiler.is_exporting():
                output.last_hidden_state[..., 0] += 0.01
            return output

        module.register_forward_hook(shift)
        return module

    monkeypatch.setattr(export, "load_module", changed)
    with pytest.raises(CompressionFailed, match="bert gives other numbers in ONNX Runtime than in torch"):
        exported(small, tmp_path)


def rows_file(folder: Path, inputs: Sequence[Any]) -> Path:
    """The inputs as a file of an evaluation."""
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps({'input': one})}\n" for one in inputs))
    return file


def test_the_rows_of_the_evaluation_are_compared(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", *sentences(70), "word " * 600]
    tokenizer: Any = load_tokenizer(small)
    word = tokenizer.vocab["zebra"]  # which no other text has
    seen: list[tuple[int, int]] = []
    loaded: Any = export.load_module

    def changed(*arguments: Any) -> Any:
        module = loaded(*arguments)

        def spoil(_: Any, __: Any, given: dict[str, Any], output: Any) -> Any:
            if not torch.compiler.is_exporting():
                seen.append(tuple(given["input_ids"].shape))
                output.last_hidden_state[given["input_ids"] == word] += 0.01
            return output

        module.register_forward_hook(spoil, with_kwargs=True)
        return module

    monkeypatch.setattr(export, "load_module", changed)
    _, outcome = run(Export(), small, tmp_path / "graph", Task.EMBED, rows_file(tmp_path, texts))
    assert any("on 32 rows of data" in note for note in outcome.notes)
    assert len(seen) >= 32 / 2 + 5
    assert max(length for _, length in seen) == 510
    spoiled = f"zebra {texts[1]}"
    with pytest.raises(CompressionFailed, match="bert gives other numbers in ONNX Runtime than in torch"):
        run(Export(), small, tmp_path / "spoiled", Task.EMBED, rows_file(tmp_path, [texts[2], spoiled]))


def test_few_positions_are_enough(small: Path, tmp_path: Path) -> None:
    """A model of 24 positions, fewer than the lengths that are compared have."""
    module: Any = load_module(small, Quantization.NONE, "cpu", KINDS[Task.EMBED])
    embeddings = module.embeddings
    embeddings.position_embeddings.weight.data = embeddings.position_embeddings.weight.data[:24]
    module.config.max_position_embeddings = 24
    save(module, small, tmp_path / "short")
    rows = rows_file(tmp_path, [*sentences(3), "word " * 600])
    _, outcome = run(Export(), tmp_path / "short", tmp_path / "graph", Task.EMBED, rows)
    assert any("on 4 rows of data" in note for note in outcome.notes)


def test_a_cross_encoder_reads_token_types(reranker: Path, tmp_path: Path) -> None:
    source = cut(reranker, tmp_path / "cut", Task.RERANK)
    ranking = {"query": "close a file", "documents": ["closes the file", "opens a socket"]}
    graph, _ = run(Export(), source, tmp_path / "graph", Task.RERANK, rows_file(tmp_path, [ranking] * 3))
    spec = model_spec(engine="rerank", task="rerank", source="hf:model")
    payloads = [
        {"query": "close a file", "documents": ["closes the file", "opens a socket", "a"]},
        {"query": "parse", "documents": ["parse a string " * 20]},
    ]
    engines = [RerankEngine.load(spec, folder, "cpu") for folder in (source, graph)]
    rows = engines[0].prepare(payloads, {}).rows
    expected, found = (engine.run(rows, {}) for engine in engines)
    for one, other in zip(found, expected, strict=True):
        assert [entry["index"] for entry in one] == [entry["index"] for entry in other]
        np.testing.assert_allclose([e["score"] for e in one], [e["score"] for e in other], rtol=0, atol=1e-5)


def test_a_language_model_tells_the_same_likelihoods(language_model: Path, tmp_path: Path) -> None:
    graph, _ = run(Export(), language_model, tmp_path / "graph", Task.SCORE, rows_file(tmp_path, ["", *sentences(5)]))
    spec = model_spec(engine="score", task="score", source="hf:model")
    engines: list[Any] = [ScoreEngine.load(spec, folder, "cpu") for folder in (language_model, graph)]
    rows = engines[0].prepare([*sentences(9), "word " * 100], {}).rows
    expected = engines[0].run(rows, {"per_token": True})
    calls: list[int] = []
    for logits in (2**24, 1):  # all at once, and text by text
        engines[1]._logits = logits
        calls.clear()
        engines[1].checkpoint = lambda: calls.append(1)
        found = engines[1].run(rows, {"per_token": True})
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one["token_log_likelihoods"], other["token_log_likelihoods"], rtol=0, atol=1e-3)
    assert len(calls) == 9


def test_a_gguf_file_is_unpacked(speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: Any = export.load_module

    def first_layer(*arguments: Any) -> Any:
        module = loaded(*arguments)
        del module.model.layers[1:]
        module.config.num_hidden_layers = 1
        return module

    monkeypatch.setattr(export, "load_module", first_layer)
    folder, outcome = run(Export(), speaker.parent, tmp_path / "graph", Task.SCORE)
    assert any("unpacked from speaker" in note for note in outcome.notes)
    module = load_model(folder, plain(Quantization.NONE), "cpu", KINDS[Task.SCORE])
    assert isinstance(module, OnnxModule)


def test_generating_is_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressionFailed, match="does not generate here"):
        exported(encoder, tmp_path, Task.GENERATE)


def test_quantized_weights_are_refused(encoder: Path, tmp_path: Path) -> None:
    load_module(encoder, Quantization.NF4, "cpu").save_pretrained(tmp_path / "nf4")
    with pytest.raises(ModelLoadFailed, match="stored as nf4"):
        exported(tmp_path / "nf4", tmp_path / "out")


def test_a_transformer_in_a_folder_of_its_own_stays_there(small: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "0_Transformer").mkdir(parents=True)
    for file in small.iterdir():
        place = source if file.name in ("modules.json", "1_Pooling", "2_Normalize") else source / "0_Transformer"
        (shutil.copytree if file.is_dir() else shutil.copy)(file, place / file.name)
    modules = json.loads((small / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (source / "modules.json").write_text(json.dumps(modules))
    graph = exported(source, tmp_path / "out")
    assert (graph / "0_Transformer" / GRAPH).is_file()
    engine: Any = EmbedEngine.load(model_spec(engine="embed", task="embed", source="hf:model"), graph, "cpu")
    assert isinstance(engine._module, OnnxModule)
