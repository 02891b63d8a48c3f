from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.heads import held_back, labelled
from benchmarks.texts import stdlib_docstrings
from contracts.errors import CompressionFailed, InvalidRequest, ModelLoadFailed
from contracts.names import Quantization, Task
from tests.models import model_spec, variant
from tests.steps import digest, loaded, outputs, run_step
from worker.engines.classify import ClassifyEngine
from worker.engines.embed import EmbedEngine

METHODS = ["nf4", "fp4", "int8", "bf16", "fp16"]


def quantize(method: str, source: Path, destination: Path, task: Task = Task.EMBED, **options: Any) -> Quantization:
    return run_step({"step": "quantize", "method": method, **options}, source, destination, task).quantization


@pytest.mark.parametrize(("method", "double"), [*((method, False) for method in METHODS), ("nf4", True), ("fp4", True)])
def test_what_is_stored_gives_what_quantizing_at_load_gives(
    encoder: Path, method: str, double: bool, tmp_path: Path
) -> None:
    quantization = quantize(method, encoder, tmp_path / "one", double=double)
    assert quantization == (f"{method}-double" if double else method)
    stored, direct = loaded(tmp_path / "one", held=quantization), loaded(encoder, held=quantization)
    assert torch.equal(outputs(stored), outputs(direct))
    assert quantize(method, encoder, tmp_path / "other", double=double) == quantization
    assert digest(tmp_path / "one") == digest(tmp_path / "other")


@pytest.mark.parametrize(
    ("fixture", "task", "head"),
    [
        ("classifier", "classify", "classifier"),
        ("reranker", "rerank", "classifier"),
        ("language_model", "score", "lm_head"),
    ],
)
@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_heads_stay_as_they_are(
    fixture: str, task: str, head: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(fixture)
    quantization = quantize(method, source, tmp_path / "out", Task(task))
    stored = loaded(tmp_path / "out", Task(task), quantization)
    assert stored.get_submodule(head).weight.dtype == torch.bfloat16
    assert torch.equal(outputs(stored), outputs(loaded(source, Task(task), quantization)))


@pytest.mark.parametrize(
    ("model", "method", "bytes_left", "likeness"),
    [
        ("encoder", "nf4", 0.40, 0.9),
        ("encoder", "int8", 0.45, 0.999),
        pytest.param("real_encoder", "nf4", 0.35, 0.97, marks=pytest.mark.verify),
        pytest.param("real_encoder", "int8", 0.40, 0.999, marks=pytest.mark.verify),
    ],
)
def test_an_encoder_keeps_its_vectors_in_a_third_of_the_bytes(
    model: str, method: str, bytes_left: float, likeness: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    encoder: Path = request.getfixturevalue(model)
    quantization = quantize(method, encoder, tmp_path / "out")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "out", encoder)]
    assert sizes[0] <= bytes_left * sizes[1]
    texts = stdlib_docstrings(800)[::16]
    vectors = []
    for folder, held in ((encoder, Quantization.NONE), (tmp_path / "out", quantization)):
        engine = EmbedEngine.load(model_spec(task="embed", quantization=held), folder, "cpu")
        rows = sorted(engine.prepare(texts, {"truncate": True}).rows, key=len)
        vectors.append(np.concatenate([engine.run(rows[i : i + 10], {}) for i in range(0, len(rows), 10)]))
    assert (vectors[0] * vectors[1]).sum(1).mean() >= likeness


def labels_of(folder: Path, held: Quantization) -> list[str]:
    engine = ClassifyEngine.load(model_spec(task="classify", quantization=held), folder, "cpu")
    rows = engine.prepare([example.text for example in held_back(labelled())], {}).rows
    return [row[0]["label"] for row in engine.run(rows, {"top_k": 1})]


@pytest.mark.verify
def test_a_trained_classifier_is_right_as_often(real_classifier: Path, tmp_path: Path) -> None:
    quantization = quantize("nf4", real_classifier, tmp_path / "out", Task.CLASSIFY)
    wanted = [example.label for example in held_back(labelled())]
    before, after = (
        sum(found == label for found, label in zip(labels_of(folder, held), wanted, strict=True))
        for folder, held in ((real_classifier, Quantization.NONE), (tmp_path / "out", quantization))
    )
    assert after >= before - 4


def test_a_classifier_keeps_its_labels(classifier: Path, tmp_path: Path) -> None:
    quantization = quantize("nf4", classifier, tmp_path / "out", Task.CLASSIFY)
    before, after = labels_of(classifier, Quantization.NONE), labels_of(tmp_path / "out", quantization)
    assert len(set(before)) > 1
    same = [one == other for one, other in zip(before, after, strict=True)]
    assert np.mean(same) > 0.5


def test_what_is_quantized_is_not_quantized_again(encoder: Path, tmp_path: Path) -> None:
    quantize("nf4", encoder, tmp_path / "nf4")
    with pytest.raises(ModelLoadFailed, match="stored as nf4"):
        quantize("int8", tmp_path / "nf4", tmp_path / "out")
    with pytest.raises(InvalidRequest, match="quantized twice"):
        run_step({"step": "quantize", "method": "int8"}, tmp_path / "nf4", tmp_path / "more", held=Quantization.NF4)


def test_weights_beyond_the_reach_of_16_bits(encoder: Path, tmp_path: Path) -> None:
    source = variant(tmp_path / "source", {"model.safetensors": None}, encoder)
    weights = load_file(encoder / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"] += 1e6
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CompressionFailed, match=r"quantize \(fp16\): the result computes no numbers.*use bf16"):
        quantize("fp16", source, tmp_path / "out")
    assert quantize("bf16", source, tmp_path / "bf16") is Quantization.BF16


def test_a_model_whose_layers_cannot_be_packed_here(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=60, intermediate_size=90, num_hidden_layers=1, num_attention_heads=2, vocab_size=99
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    # These take 4-bit layers in blocks, all others any.
    refused = pytest.raises(CompressionFailed, match="the result cannot compute on this machine")
    with refused if has_avx512bf16() else nullcontext():
        quantize("nf4", tmp_path / "source", tmp_path / "out", Task.SCORE)
