from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.errors import CompressionFailed
from contracts.names import Task
from contracts.recipes import parse_recipe
from tests.models import MINILM
from tests.steps import loaded, outputs, run_step
from worker.compression.steps.one_layer import names_of_blocks, treated

STEPS: list[dict[str, Any]] = [
    {"step": "prune", "method": "magnitude", "keep_ratio": 0.3},
    {"step": "prune", "method": "structured", "keep_ratio": 0.5},
    {"step": "quantize", "method": "nf4"},
    {"step": "quantize", "method": "fp4", "double": True},
    {"step": "quantize", "method": "int8"},
    {"step": "quantize", "method": "bf16"},
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["method"])
def test_one_layer_is_treated_and_all_else_stays(step: dict[str, Any]) -> None:
    module = loaded(MINILM)
    before = outputs(module)
    assert names_of_blocks(module) == [f"encoder.layer.{number}" for number in range(6)]
    copy = treated(module, parse_recipe([step])[0], "encoder.layer.2")
    shared = {name for name, weight in copy.named_parameters() if weight is dict(module.named_parameters()).get(name)}
    assert {name for name, _ in module.named_parameters() if ".2." not in name} == shared
    changed = outputs(copy)
    likeness = torch.cosine_similarity(changed, before, dim=-1).mean()
    assert 0.7 < likeness < 1 - 1e-7
    assert torch.equal(outputs(module), before)


def test_layers_of_a_language_model(language_model: Path, tmp_path: Path) -> None:
    module = loaded(language_model, Task.SCORE)
    assert names_of_blocks(module) == ["layers.0", "layers.1"]
    [step] = parse_recipe([STEPS[0] | {"scope": "layer"}])
    both = treated(treated(module, step, "layers.0"), step, "layers.1")
    run_step(STEPS[0] | {"scope": "layer"}, language_model, tmp_path / "out", Task.SCORE)
    assert torch.equal(outputs(both), outputs(loaded(tmp_path / "out", Task.SCORE)))


def test_only_some_steps_treat_one_layer() -> None:
    [step] = parse_recipe([{"step": "export"}])
    with pytest.raises(CompressionFailed, match="export: only pruning and quantizing"):
        treated(loaded(MINILM), step, "encoder.layer.0")
