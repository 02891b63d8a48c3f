"""Which layer bears what, on a model one of whose layers is known to bear nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.texts import sentences
from contracts.names import Quantization, Task
from contracts.recipes import parse_recipe
from tests.models import variant
from worker.compression.evaluation import sensitivity
from worker.compression.evaluation.order import Artifact, EvaluationOrder
from worker.compression.evaluation.outputs import Outputs
from worker.compression.evaluation.sensitivity import Subject, measure, subject
from worker.compression.sampling import evenly

MAGNITUDE = {"step": "prune", "method": "magnitude", "keep_ratio": 0.5}
NF4 = {"step": "quantize", "method": "nf4"}
EXPORT = {"step": "export"}
INT8 = {"step": "quantize", "method": "int8"}


def subject_of(folder: Path, step: dict[str, Any]) -> Subject:
    [parsed] = parse_recipe([step])
    return Subject(1, parsed, Artifact("source", folder, Quantization.NONE), Task.EMBED, "embed")


def test_a_layer_without_weights_loses_nothing(encoder: Path, tmp_path: Path) -> None:
    """Where all weights of a layer are zero, pruning it changes nothing; of all others something."""
    folder = variant(tmp_path, {}, encoder)
    weights = load_file(encoder / "model.safetensors")
    for name, tensor in weights.items():
        if name.startswith("encoder.layer.2.") and ".LayerNorm." not in name:
            tensor.zero_()
    (tmp_path / "model.safetensors").unlink()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    told: list[float] = []
    found = measure(subject_of(folder, MAGNITUDE), sentences(12), told.append)
    fidelities = {layer.layer: layer.fidelity for layer in found}
    assert list(fidelities) == [f"encoder.layer.{number}" for number in range(6)]
    assert fidelities.pop("encoder.layer.2") == pytest.approx(1, abs=1e-6)
    assert all(0.3 < fidelity < 0.9999 for fidelity in fidelities.values())
    assert told == [pytest.approx(number / 6) for number in range(1, 7)]


def test_time_and_layers_are_bounded(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "LAYERS", 3)
    monkeypatch.setattr(sensitivity, "SECONDS", 0.001)
    computed: list[int] = []
    compute = sensitivity.compute

    def counted(engine: Any, payloads: list[str], task: Task) -> Any:
        computed.append(len(payloads))
        return compute(engine, payloads, task)

    monkeypatch.setattr(sensitivity, "compute", counted)
    found = measure(subject_of(encoder, NF4), sentences(100))
    assert [layer.layer for layer in found] == [f"encoder.layer.{number}" for number in (0, 2, 5)]
    assert computed == [64, 8, 8, 8, 8]


def test_a_layer_that_loses_rows_is_lowered(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that only the untreated model computes count as lost; a layer that loses all bears nothing."""
    monkeypatch.setattr(sensitivity, "LAYERS", 3)
    compute = sensitivity.compute
    kept = iter([12, 12, 6, 0])

    def losing(engine: Any, payloads: list[str], task: Task) -> Outputs:
        found = compute(engine, payloads, task)
        return Outputs({row: found.values[row] for row in range(next(kept))}, {})

    whole = [layer.fidelity for layer in measure(subject_of(encoder, NF4), sentences(12))]
    monkeypatch.setattr(sensitivity, "compute", losing)
    found = [layer.fidelity for layer in measure(subject_of(encoder, NF4), sentences(12))]
    assert found == [pytest.approx(whole[0]), pytest.approx(whole[1] / 2, rel=0.02), 0.0]


def test_evenly() -> None:
    assert evenly(5, 10) == [0, 1, 2, 3, 4]
    assert evenly(101, 3) == [0, 50, 100]
    assert evenly(1, 8) == [0]


@pytest.mark.parametrize(
    ("steps", "number"), [([MAGNITUDE, NF4], 2), ([MAGNITUDE, EXPORT, INT8], 1), ([EXPORT, INT8], None)]
)
def test_the_last_step_on_torch_weights(
    encoder: Path, steps: list[dict[str, Any]], number: int | None, tmp_path: Path
) -> None:
    artifacts = []
    for place, step in enumerate(steps, 1):
        folder = tmp_path / str(place)
        folder.mkdir()
        if EXPORT in steps[:place]:
            (folder / "model.onnx").touch()
        artifacts.append(Artifact(f"after {step['step']}", folder, Quantization.NONE))
    order = EvaluationOrder(
        task=Task.EMBED,
        engine="embed",
        parent=Artifact("parent", encoder, Quantization.NONE),
        artifacts=tuple(artifacts),
        recipe=parse_recipe(steps),
        scratch=tmp_path,
    )
    found = subject(order, Task.EMBED, "embed")
    assert (None if found is None else found.number) == number
    if found is not None:
        assert found.source == (order.parent, *order.artifacts)[found.number - 1]


def test_the_model_on_disk_is_not_touched(encoder: Path) -> None:
    before = torch.as_tensor(load_file(encoder / "model.safetensors")["encoder.layer.0.output.dense.weight"])
    measure(subject_of(encoder, MAGNITUDE), sentences(4))
    after = load_file(encoder / "model.safetensors")["encoder.layer.0.output.dense.weight"]
    assert torch.equal(before, after)
