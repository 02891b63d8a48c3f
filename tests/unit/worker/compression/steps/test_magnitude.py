from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.errors import CompressionFailed
from contracts.names import Quantization, Task
from tests.models import MINILM
from tests.steps import digest, loaded, run_step
from worker.compression.blocks import blocks, linear_layers
from worker.compression.steps.magnitude import kth_smallest


def pruned(options: dict[str, Any], source: Path, destination: Path, task: Task = Task.EMBED) -> tuple[Any, str]:
    outcome = run_step({"step": "prune", "method": "magnitude", **options}, source, destination, task)
    return loaded(destination, task), outcome.notes[-1]


def linear(module: Any) -> list[torch.Tensor]:
    return [layer.weight for block in blocks(module).values() for layer in linear_layers(block)]


def share(weights: list[torch.Tensor]) -> float:
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_threshold_is_exact_without_all_weights_in_one_place(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(50, 40).to(dtype), torch.zeros(3, 3, dtype=dtype), 1e-30 * torch.randn(70).to(dtype)]
    together = torch.cat([tensor.flatten() for tensor in tensors]).abs().float()
    for k in (1, 9, 10, 77, 1000, len(together)):
        value, smaller = kth_smallest(tensors, k)
        assert value == together.kthvalue(k).values
        assert smaller == (together < value).sum()


def test_a_global_threshold_leaves_the_largest_of_all_layers(tmp_path: Path) -> None:
    module, note = pruned({"keep_ratio": 0.3}, MINILM, tmp_path / "out")
    before, after = linear(loaded(MINILM)), linear(module)
    assert share(after) == pytest.approx(0.7, abs=1e-6)
    left = min(weight[weight != 0].abs().min() for weight in after)
    gone = max(old[new == 0].abs().max() for old, new in zip(before, after, strict=True))
    assert gone <= left
    assert all(torch.equal(old[new != 0], new[new != 0]) for old, new in zip(before, after, strict=True))
    assert len({round(share([weight]), 2) for weight in after}) > 1
    assert note.startswith("70.0% of the 10,616,832 weights in linear layers are zero (32.7% of all 22,713,216")
    assert "neither faster nor smaller" in note


def test_each_layer_may_keep_the_same_share(tmp_path: Path) -> None:
    module, _ = pruned({"keep_ratio": 0.25, "scope": "layer"}, MINILM, tmp_path / "out")
    assert {round(share([weight]), 4) for weight in linear(module)} == {0.75}


def test_a_threshold_of_ones_own(tmp_path: Path) -> None:
    module, _ = pruned({"threshold": 0.05}, MINILM, tmp_path / "out")
    for old, new in zip(linear(loaded(MINILM)), linear(module), strict=True):
        assert torch.equal(new, old.where(old.abs() >= 0.05, 0))


@pytest.mark.parametrize(("fixture", "task"), [("classifier", "classify"), ("language_model", "generate")])
def test_heads_embeddings_and_norms_are_left_alone(
    fixture: str, task: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(fixture)
    module, _ = pruned({"keep_ratio": 0.5}, source, tmp_path / "out", Task(task))
    whole = loaded(source, Task(task))
    changed = {name for name, weight in module.named_parameters() if not torch.equal(weight, whole.get_parameter(name))}
    ids = {id(weight) for weight in linear(module)}
    assert changed == {name for name, weight in module.named_parameters() if id(weight) in ids}


def test_weights_in_16_bits_have_many_of_a_kind_and_still_the_share_is_met(tmp_path: Path) -> None:
    short = tmp_path / "short"
    run_step({"step": "quantize", "method": "bf16"}, MINILM, short)
    outcome = run_step(
        {"step": "prune", "method": "magnitude", "keep_ratio": 0.5}, short, tmp_path / "out", held=Quantization.BF16
    )
    assert outcome.quantization is Quantization.BF16
    assert share(linear(loaded(tmp_path / "out", held=Quantization.BF16))) == pytest.approx(0.5, abs=1e-6)


def test_a_threshold_leaves_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        pruned({"threshold": 0.01}, MINILM, tmp_path / name)
    assert digest(tmp_path / "one") == digest(tmp_path / "other")


def test_a_model_that_is_no_stack_of_layers() -> None:
    module = loaded(MINILM)
    module.config.num_hidden_layers = 5
    with pytest.raises(CompressionFailed, match="bert is no stack of 5 layers"):
        blocks(module)
