import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from contracts.errors import CompressionFailed, ModelLoadFailed
from contracts.families import FAMILIES
from contracts.names import Quantization, Task
from contracts.params import parse_params
from tests.models import MINILM, changed, model_spec
from tests.steps import loaded, outputs, run_step
from worker.engines.base import Engine
from worker.engines.classify import ClassifyEngine
from worker.engines.generate import GenerateEngine
from worker.engines.rerank import RerankEngine
from worker.engines.score import ScoreEngine

STEP = {"step": "prune", "method": "structured", "keep_ratio": 0.5}
SMALL = {
    "vocab_size": 300,
    "hidden_size": 128,
    "dim": 128,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "num_attention_heads": 8,
    "n_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 192,
    "hidden_dim": 192,
    "max_position_embeddings": 64,
}
"""Of every family, as far as it has the key."""


def small(model_type: str, folder: Path) -> tuple[Path, Task]:
    """A model of two layers that nobody trained: its shapes are what matters."""
    known = AutoConfig.for_model(model_type).to_dict()
    config = AutoConfig.for_model(model_type, **{key: value for key, value in SMALL.items() if key in known})
    decoder = "num_key_value_heads" in known
    torch.manual_seed(0)
    module = (AutoModelForCausalLM if decoder else AutoModel).from_config(config)
    module.save_pretrained(folder)
    return folder, Task.GENERATE if decoder else Task.EMBED


def zeroed(module: Any, neurons: int, groups: int, of: int, order: int = 2) -> Any:
    """The whole model without what the smallest of its parts give to others, the rest of each layer untouched."""
    family = FAMILIES[module.config.model_type]
    for layer in module.base_model.get_submodule(family.layers):
        for ways_in, way_out, kept, parts in (
            (family.neurons, family.neurons_out, neurons, None),
            (family.heads, family.heads_out, groups, of),
        ):
            out = layer.get_submodule(way_out).weight
            count = parts or out.shape[1]
            matrices = [layer.get_submodule(path).weight for path in ways_in] + [out.T]
            total = sum(matrix.abs().pow(order).reshape(count, -1).sum(1) for matrix in matrices)
            with torch.no_grad():
                for part in total.argsort()[: count - kept].tolist():
                    width = out.shape[1] // count
                    out[:, part * width : (part + 1) * width] = 0
    return module


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_family_computes_what_it_would_with_zeros_for_what_was_removed(model_type: str, tmp_path: Path) -> None:
    source, task = small(model_type, tmp_path / "source")
    run_step(STEP, source, tmp_path / "out", task)
    module = loaded(tmp_path / "out", task)
    groups = 4 if task is Task.GENERATE else 8
    # 96 neurons would be half of them.
    expected = outputs(zeroed(loaded(source, task), 128, groups // 2, groups))
    torch.testing.assert_close(outputs(module), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(outputs(loaded(source, task)), expected, atol=1e-3)
    family = FAMILIES[model_type]
    layer = module.base_model.get_submodule(family.layers)[1]
    assert layer.get_submodule(family.heads[0]).weight.shape == (64, 128)
    assert layer.get_submodule(family.neurons_out).weight.shape == (128, 128)
    assert module.num_parameters() < loaded(source, task).num_parameters()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_minilm_loses_half_of_its_encoder(norm: str, tmp_path: Path) -> None:
    outcome = run_step({**STEP, "norm": norm}, MINILM, tmp_path / "out")
    module, whole = loaded(tmp_path / "out"), loaded(MINILM)
    # Of each layer: four matrices of attention and two of the feed-forward network, with the biases of what was cut.
    gone = 6 * (4 * 384 * 192 + 2 * 384 * 768 + 3 * 192 + 768)
    assert module.num_parameters() == whole.num_parameters() - gone
    assert outcome.notes == [
        "Each of 6 layers keeps 768 of 1,536 feed-forward neurons and 6 of 12 attention heads; of the layers' "
        f"10,646,784 parameters {10_646_784 - gone:,} are left ({1 - gone / 10_646_784:.1%})."
    ]
    order = 1 if norm == "l1" else 2
    torch.testing.assert_close(outputs(module), outputs(zeroed(whole, 768, 6, 12, order)), atol=1e-5, rtol=0)


def test_one_part_alone_and_then_the_other(tmp_path: Path) -> None:
    run_step({**STEP, "parts": ["heads"], "keep_ratio": 0.7}, MINILM, tmp_path / "heads")
    config = json.loads((tmp_path / "heads" / "config.json").read_text())
    assert (config["kept_head_groups"], config["num_attention_heads"], config["intermediate_size"]) == (8, 12, 1536)
    run_step({**STEP, "parts": ["neurons"]}, tmp_path / "heads", tmp_path / "both")
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    assert (config["kept_head_groups"], config["intermediate_size"]) == (8, 768)
    run_step(STEP, tmp_path / "both", tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["kept_head_groups"], config["intermediate_size"]) == (4, 384)
    torch.testing.assert_close(
        outputs(loaded(tmp_path / "again")),
        outputs(zeroed(loaded(tmp_path / "both"), 384, 4, 8)),
        atol=1e-5,
        rtol=0,
    )


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "minilm"
    run_step({**STEP, "keep_ratio": 0.6}, MINILM, folder)
    return folder


@pytest.mark.parametrize("quantization", [kind for kind in Quantization if kind is not Quantization.AUTO])
def test_every_quantization_loads_the_smaller_shapes(quantization: Quantization, pruned: Path) -> None:
    module = loaded(pruned, held=quantization)
    assert module.encoder.layer[3].attention.self.query.out_features == 8 * 32
    likeness = torch.cosine_similarity(outputs(module), outputs(loaded(pruned)), dim=-1).mean()
    assert likeness > 0.9


@pytest.mark.parametrize("method", ["nf4", "int8", "bf16"])
def test_what_was_pruned_is_then_quantized(method: str, pruned: Path, tmp_path: Path) -> None:
    run_step({"step": "quantize", "method": method}, pruned, tmp_path / "out")
    held = Quantization(method)
    assert torch.equal(outputs(loaded(tmp_path / "out", held=held)), outputs(loaded(pruned, held=held)))


@pytest.mark.parametrize(
    ("fixture", "engine", "payload"),
    [
        ("classifier", ClassifyEngine, "Run an event loop until complete."),
        ("reranker", RerankEngine, {"query": "event loop", "documents": ["Run the loop.", "Parse a date."]}),
        ("language_model", GenerateEngine, "Python is"),
        ("language_model", ScoreEngine, "Python is a language."),
    ],
)
def test_engines_serve_what_was_pruned(
    fixture: str, engine: type[Engine], payload: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    task = Task(engine.__module__.rpartition(".")[2])
    source = request.getfixturevalue(fixture)
    run_step(STEP, source, tmp_path / "out", task)
    served = engine.load(model_spec(task=task), tmp_path / "out", "cpu")
    params = parse_params(task, {"max_new_tokens": 4} if task is Task.GENERATE else {})
    prepared = served.prepare([payload, payload], params)
    assert not prepared.errors
    assert len(served.run(prepared.rows, params)) == 2
    kept = (64, 1, 2) if fixture == "language_model" else (64, 2, 4)
    expected = outputs(zeroed(loaded(source, task), *kept))
    # Logits are tens.
    atol = 1e-4 if fixture == "language_model" else 1e-5
    torch.testing.assert_close(outputs(loaded(tmp_path / "out", task)), expected, atol=atol, rtol=0)


def test_a_family_that_is_not_known(tmp_path: Path) -> None:
    config = AutoConfig.for_model("electra", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=99)
    AutoModel.from_config(config).save_pretrained(tmp_path / "source")
    with pytest.raises(CompressionFailed, match=r"electra is not known; only bert, .* can be pruned"):
        run_step(STEP, tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"kept_head_groups": 13}, "kept_head_groups 13 is not a number from 1 to 12"),
        ({"kept_head_groups": "all"}, "'all' is not a number"),
        ({"model_type": "electra", "kept_head_groups": 2}, "electra has no kept_head_groups"),
        ({"kept_head_groups": 4}, r"attention.output.dense.weight has the shape \[384, 384\]"),
    ],
)
def test_shapes_that_cannot_be_are_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = changed(MINILM, tmp_path, config)
    with pytest.raises(ModelLoadFailed, match=said):
        loaded(folder)
