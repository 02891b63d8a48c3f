"""Whole evaluations of real models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from benchmarks.heads import held_back, labelled
from benchmarks.texts import sentences
from contracts.errors import CompressionFailed
from contracts.names import Quantization, Task
from contracts.recipes import Accept, parse_recipe
from tests.graphs import cut
from tests.measuring import serve_small
from tests.models import model_spec
from tests.steps import run_step
from worker.compression.evaluation import Artifact, Evaluated, EvaluationOrder, evaluate, evaluating, judge, measurement
from worker.engines.classify import ClassifyEngine
from worker.engines.embed import EmbedEngine
from worker.loading import load_tokenizer

NF4 = {"step": "quantize", "method": "nf4"}
MAGNITUDE = {"step": "prune", "method": "magnitude", "keep_ratio": 0.8}
LINEAR = 2 * (4 * 64 * 64 + 2 * 64 * 128)
"""Weights that it prunes."""
Evaluate = Callable[..., Evaluated]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def order_of(
    folder: Path, parent: Path, task: Task, steps: list[dict[str, Any]], rows: list[dict[str, Any]] | None
) -> EvaluationOrder:
    """The steps done, and what is to be told of them."""
    artifacts, source, held = [], parent, Quantization.NONE
    for number, step in enumerate(steps, 1):
        destination = folder / f"step{number}"
        held = run_step(step, source, destination, task, held).quantization
        artifacts.append(Artifact(f"after step {number}", destination, held))
        source = destination
    return EvaluationOrder(
        task=task,
        engine=str(task),
        parent=Artifact("parent@1", parent, Quantization.NONE),
        artifacts=tuple(artifacts),
        recipe=parse_recipe(steps) if steps else (),
        scratch=folder,
        data=None if rows is None else write_rows(folder / "rows.jsonl", rows),
    )


@pytest.fixture(scope="module")
def encoder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its first two layers."""
    return cut(encoder, tmp_path_factory.mktemp("encoder"), layers=2)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured elsewhere: here it is no matter."""
    monkeypatch.setattr(measurement, "LATENCY_SECONDS", 0.05)
    monkeypatch.setattr(measurement, "SPEED_SECONDS", 0.2)
    monkeypatch.setattr(measurement, "ROUNDS", 1)
    monkeypatch.setattr(measurement.measuring, "serve", serve_small)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the processes that measure speed, which take seconds to start."""
    monkeypatch.setattr(evaluating, "_measure", lambda *_: ({}, 0.0))
    monkeypatch.setattr(evaluating.notes, "on_measurements", lambda *_: [])


@pytest.mark.usefixtures("quick")
def test_an_encoder_from_its_rows_to_its_figures(encoder: Path, tmp_path: Path) -> None:
    texts = sentences(30)
    order = order_of(tmp_path, encoder, Task.EMBED, [MAGNITUDE, NF4], [{"input": text} for text in texts])
    told: list[float] = []
    adapter = TypeAdapter(EvaluationOrder)
    found = evaluate(adapter.validate_json(adapter.dump_json(order)), lambda done, _: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1
    assert found == TypeAdapter(Evaluated).validate_json(TypeAdapter(Evaluated).dump_json(found))
    parent, pruned, result = found.stages
    assert [stage.title for stage in found.stages] == ["parent@1", "after step 1", "after step 2"]
    assert found.rows == 30
    assert parent.fidelity["fidelity"] == pytest.approx(1)
    assert parent.loss == pytest.approx(0, abs=1e-6)
    # What the engine gives for the folder, reloaded.
    engines = [
        EmbedEngine.load(model_spec(task="embed", engine="embed", quantization=held), folder, "cpu")
        for folder, held in ((encoder, "none"), (tmp_path / "step2", "nf4"))
    ]
    one, other = (np.asarray(engine.run(engine.prepare(texts, {}).rows, {})) for engine in engines)
    assert result.fidelity["fidelity"] == pytest.approx(float((one * other).sum(1).mean()), abs=2e-3)
    assert result.fidelity["fidelity"] < pruned.fidelity["fidelity"] < 1
    assert result.loss == pytest.approx(1 - result.fidelity["fidelity"])
    assert pruned.size_bytes == pytest.approx(parent.size_bytes, rel=0.01)
    assert result.size_bytes < 0.5 * parent.size_bytes
    assert pruned.measurement is not None
    assert pruned.measurement.size_bytes == pruned.size_bytes
    assert parent.measurement is not None
    assert result.measurement is not None
    assert result.measurement.size_bytes == result.size_bytes
    assert result.measurement.nonzeros < result.measurement.parameters - 0.19 * LINEAR
    # The last step that treats layers.
    assert [layer.layer for layer in found.sensitivity] == [f"encoder.layer.{number}" for number in range(2)]
    assert {layer.step for layer in found.sensitivity} == {2}
    assert all(0.8 < layer.fidelity < 1 for layer in found.sensitivity)
    assert any("of the result's parameters are zero" in note for note in found.notes)
    assert found.machine["versions"]["torch"]
    assert found.machine["cores"] > 0


@pytest.mark.usefixtures("unmeasured")
def test_a_classifier_with_labels(classifier: Path, tmp_path: Path) -> None:
    texts = [example.text for example in held_back(labelled())]
    engine = ClassifyEngine.load(model_spec(task="classify", engine="classify"), classifier, "cpu")
    outputs: list[Any] = list(engine.run(engine.prepare(texts, {}).rows, {"top_k": 2}))
    # Every seventh text has the label that the model takes for the second best.
    labels = [output[i % 7 == 0]["label"] for i, output in enumerate(outputs)]
    rows: list[dict[str, Any]] = [{"input": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    rows += [{"input": "no label at all"}, {"input": "a label of its own", "label": "cooking"}]
    found = evaluate(order_of(tmp_path, classifier, Task.CLASSIFY, [MAGNITUDE], rows), lambda *_: None)
    parent, result = found.stages
    assert parent.fidelity["agreement"] == 1
    assert parent.quality["accuracy"] == pytest.approx(6 / 7, abs=0.02)
    assert 0.5 < result.quality["accuracy"] < parent.quality["accuracy"]
    assert 0 < result.quality["macro_f1"] < 1
    assert 0.5 < result.fidelity["fidelity"] < 1
    assert parent.loss is not None
    assert result.loss is not None
    # The labels are those of the parent, and its scores lie close together: the loss may go either way.
    assert result.loss != parent.loss
    assert min(result.loss, parent.loss) > 0.1
    [note] = [note for note in found.notes if "labels" in note]
    assert note.startswith(f"1 of {len(texts) + 1} labels are none of the model's, such as 'cooking'")
    assert len(found.sensitivity) == 2


@pytest.mark.usefixtures("unmeasured")
def test_a_reranker(reranker: Path, tmp_path: Path) -> None:
    texts = sentences(40)
    rows = [{"input": {"query": texts[i], "documents": texts[i + 1 : i + 6]}} for i in range(0, 30, 3)]
    found = evaluate(order_of(tmp_path, reranker, Task.RERANK, [NF4], rows), lambda *_: None)
    figures = found.stages[-1].fidelity
    assert 0.5 < figures["fidelity"] < 1
    assert figures["fidelity"] == pytest.approx((figures["kendall_tau"] + 1) / 2)


@pytest.mark.usefixtures("quick")
def test_a_model_that_generates(language_model: Path, tmp_path: Path) -> None:
    texts = [text for text in sentences(60) if len(text) > 20][:14]
    rows: list[dict[str, Any]] = [{"input": text} for text in texts]
    rows.append({"input": {"messages": [{"role": "user", "content": "What is a docstring?"}]}})
    found = evaluate(order_of(tmp_path, language_model, Task.GENERATE, [NF4], rows), lambda *_: None)
    parent, result = found.stages
    assert found.rows == 15
    assert result.quality["perplexity"] == pytest.approx(np.exp(result.quality["nll"]))
    assert result.fidelity["delta_nll"] == pytest.approx(result.quality["nll"] - parent.quality["nll"])
    assert parent.measurement is not None
    assert parent.measurement.tokens_per_second > 0
    assert any("continuing each by at most 32 tokens" in note for note in found.notes)
    assert len(found.sensitivity) == 2


@pytest.mark.usefixtures("unmeasured")
def test_rows_that_the_parent_cannot_compute_are_left_out_and_counted(encoder: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"input": text} for text in sentences(8)]
    rows[3] = {"input": 17}
    found = evaluate(order_of(tmp_path, encoder, Task.EMBED, [{"step": "quantize", "method": "bf16"}], rows), _quiet)
    assert found.rows == 7
    assert found.notes[0] == "1 of 8 rows are left out: parent@1 does not compute them (1 invalid_input)."
    assert any(note.startswith("7 rows are too few for the overlap of the 10 nearest") for note in found.notes)
    assert "neighbour_overlap_10" not in found.stages[1].fidelity


def spoil(folder: Path, word: str) -> None:
    """Let the model give no numbers for texts with a word."""
    place = load_tokenizer(folder)(word, add_special_tokens=False)["input_ids"][0]
    weights = load_file(folder / "model.safetensors")
    [name] = [name for name in weights if name.endswith(("word_embeddings.weight", "embed_tokens.weight"))]
    weights[name][place] = torch.inf
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.usefixtures("unmeasured")
def test_rows_that_only_the_parent_can_compute_count_as_lost(encoder: Path, tmp_path: Path) -> None:
    rows = [{"input": text} for text in ["a cat", "a dog", "the cat sat", "a word", "the end"]]
    bf16 = {"step": "quantize", "method": "bf16"}
    order = order_of(tmp_path, encoder, Task.EMBED, [MAGNITUDE, bf16], rows)
    spoil(order.artifacts[1].folder, "cat")
    found = evaluate(order, _quiet)
    assert found.rows == 5
    _, pruned, result = found.stages
    assert pruned.fidelity["fidelity"] > 0.9
    assert result.fidelity["fidelity"] == pytest.approx(pruned.fidelity["fidelity"] * 3 / 5, abs=0.01)
    [criterion] = judge(Accept(fidelity=0.9), found.stages)
    assert not criterion.met
    assert found.notes[0].startswith("after step 2 does not compute 2 of 5 rows that parent@1 does (2 ")


@pytest.mark.usefixtures("unmeasured")
def test_a_text_without_a_likelihood_costs_all_fidelity(language_model: Path, tmp_path: Path) -> None:
    rows = [{"input": text} for text in ["a cat sat there", "a dog ran away", "this is the end"]]
    order = order_of(tmp_path, language_model, Task.SCORE, [{"step": "quantize", "method": "bf16"}], rows)
    spoil(order.artifacts[0].folder, " cat")
    found = evaluate(order, _quiet)
    result = found.stages[-1]
    assert result.fidelity["fidelity"] == 0
    assert abs(result.fidelity["delta_nll"]) < 0.1
    assert not judge(Accept(fidelity=0.01), found.stages)[0].met
    assert "so its fidelity is 0, and the other figures are of the texts that it does score." in found.notes[0]


@pytest.mark.usefixtures("quick")
def test_a_model_in_the_middle_that_cannot_be_measured_is_left_out(encoder: Path, tmp_path: Path) -> None:
    order = order_of(tmp_path, encoder, Task.EMBED, [MAGNITUDE, NF4], [{"input": text} for text in sentences(4)])
    (order.artifacts[0].folder / "config.json").write_text("{}")
    found, _ = evaluating._measure(order, "cpu", _quiet)
    assert sorted(found) == [0, 2]


def test_rows_of_which_none_can_be_computed(encoder: Path, tmp_path: Path) -> None:
    order = order_of(tmp_path, encoder, Task.EMBED, [NF4], [{"input": 1}, {"input": {"query": "a"}}])
    with pytest.raises(
        CompressionFailed, match=r"parent@1 can compute none of the rows: expected a text, got a number"
    ):
        evaluate(order, _quiet)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "there is no row"), ('{"input": "a"}\nnot JSON\n', "line 2: expected"), ("[1]\n", "line 1: expected")],
)
def test_rows_that_are_none(encoder: Path, content: str, message: str, tmp_path: Path) -> None:
    order = order_of(tmp_path, encoder, Task.EMBED, [], [])
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(CompressionFailed, match=message):
        evaluate(order, _quiet)


def test_without_rows_sizes_are_told(encoder: Path, tmp_path: Path) -> None:
    found = evaluate(order_of(tmp_path, encoder, Task.EMBED, [NF4], None), _quiet)
    assert found.rows == 0
    assert [stage.fidelity for stage in found.stages] == [{}, {}]
    assert found.stages[1].size_bytes < 0.5 * found.stages[0].size_bytes
    assert found.sensitivity == []


def _quiet(*_: object) -> None:
    """Nobody looks at the progress."""
