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
from tests.models import MINILM, model_spec, variant
from tests.steps import digest, loaded, outputs, run_step
from worker.engines.classify import ClassifyEngine
from worker.engines.embed import EmbedEngine

METHODS = ["nf4", "fp4", "int8", "bf16", "fp16"]


def quantize(method: str, source: Path, destination: Path, task: Task = Task.EMBED, **options: Any) -> Quantization:
    return run_step({"step": "quantize", "method": method, **options}, source, destination, task).quantization


@pytest.mark.parametrize(("method", "double"), [*((method, False) for method in METHODS), ("nf4", True), ("fp4", True)])
def test_what_is_stored_gives_what_quantizing_at_load_gives(method: str, double: bool, tmp_path: Path) -> None:
    quantization = quantize(method, MINILM, tmp_path / "one", double=double)
    assert quantization == (f"{method}-double" if double else method)
    stored, direct = loaded(tmp_path / "one", held=quantization), loaded(MINILM, held=quantization)
    assert torch.equal(outputs(stored), outputs(direct))
    assert quantize(method, MINILM, tmp_path / "other", double=double) == quantization
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


@pytest.mark.parametrize(("method", "bytes_left", "likeness"), [("nf4", 0.35, 0.97), ("int8", 0.40, 0.999)])
def test_minilm_keeps_its_vectors_in_a_third_of_the_bytes(
    method: str, bytes_left: float, likeness: float, tmp_path: Path
) -> None:
    quantization = quantize(method, MINILM, tmp_path / "out")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "out", MINILM)]
    assert sizes[0] <= bytes_left * sizes[1]
    texts = stdlib_docstrings(800)[::16]
    vectors = []
    for folder, held in ((MINILM, Quantization.NONE), (tmp_path / "out", quantization)):
        engine = EmbedEngine.load(model_spec(task="embed", quantization=held), folder, "cpu")
        rows = sorted(engine.prepare(texts, {"truncate": True}).rows, key=len)
        vectors.append(np.concatenate([engine.run(rows[i : i + 10], {}) for i in range(0, len(rows), 10)]))
    assert (vectors[0] * vectors[1]).sum(1).mean() >= likeness


def test_a_classifier_keeps_its_labels(classifier: Path, tmp_path: Path) -> None:
    quantization = quantize("nf4", classifier, tmp_path / "out", Task.CLASSIFY)
    examples = held_back(labelled())
    right = []
    for folder, held in ((classifier, Quantization.NONE), (tmp_path / "out", quantization)):
        engine = ClassifyEngine.load(model_spec(task="classify", quantization=held), folder, "cpu")
        found = engine.run(engine.prepare([example.text for example in examples], {}).rows, {"top_k": 1})
        right.append(sum(row[0]["label"] == example.label for row, example in zip(found, examples, strict=True)))
    assert right[1] >= right[0] - 4


def test_what_is_quantized_is_not_quantized_again(tmp_path: Path) -> None:
    quantize("nf4", MINILM, tmp_path / "nf4")
    with pytest.raises(ModelLoadFailed, match="stored as nf4"):
        quantize("int8", tmp_path / "nf4", tmp_path / "out")
    with pytest.raises(InvalidRequest, match="quantized twice"):
        run_step({"step": "quantize", "method": "int8"}, tmp_path / "nf4", tmp_path / "more", held=Quantization.NF4)


def test_weights_beyond_the_reach_of_16_bits(tmp_path: Path) -> None:
    source = variant(tmp_path / "source", {"model.safetensors": None})
    weights = load_file(MINILM / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"] *= 1e6
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
