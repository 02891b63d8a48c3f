"""What is said of numbers, each said only where they are so."""

from pathlib import Path

import pytest

from contracts.compression import Measurement, Stage
from contracts.errors import ItemFailed
from contracts.names import Quantization, Task
from contracts.recipes import parse_recipe
from tests.weights import write_gguf
from worker.compression.evaluation import notes
from worker.compression.evaluation.order import Artifact, EvaluationOrder

NF4 = {"step": "quantize", "method": "nf4"}
MAGNITUDE = {"step": "prune", "method": "magnitude", "keep_ratio": 0.5}
BEFORE = Measurement(
    size_bytes=1000,
    parameters=100,
    nonzeros=100,
    memory_bytes=50_000_000,
    load_seconds=1,
    latency_p50=0.010,
    latency_p95=0.020,
    throughput=100,
    tokens_per_second=1000,
    budget_tokens=2048,
)


def order(folder: Path, *steps: dict[str, object]) -> EvaluationOrder:
    (folder / "result").mkdir()
    return EvaluationOrder(
        task=Task.EMBED,
        engine="embed",
        parent=Artifact("parent", folder, Quantization.NONE),
        artifacts=(Artifact("result", folder / "result", Quantization.NONE),),
        recipe=parse_recipe(steps),
        scratch=folder,
    )


def stages(size: int = 500, **changes: float) -> list[Stage]:
    after = BEFORE.model_copy(update=changes)
    return [
        Stage(title=title, size_bytes=size_bytes, quality={}, fidelity={}, measurement=measured)
        for title, size_bytes, measured in (("parent", 1000, BEFORE), ("result", size, after))
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"throughput": 80}, ["Step 1 made the model slower here: 0.80 times the inputs a second of its parent."]),
        ({"throughput": 98}, ["Step 1 made the model neither faster nor slower here."]),
        ({"throughput": 150}, []),
        (
            {"throughput": 150, "latency_p50": 0.015},
            ["A single input takes longer than before: 1.50 times its parent's time."],
        ),
        (
            {"throughput": 150, "memory_bytes": 70_000_000},
            ["It takes more memory than before: 70 MB while it computes, and its parent 50 MB."],
        ),
    ],
)
def test_speed_and_memory(changes: dict[str, float], said: list[str], tmp_path: Path) -> None:
    assert notes.on_measurements(order(tmp_path, NF4), stages(**changes), 0.1) == said


@pytest.mark.parametrize(
    ("throughputs", "said"),
    [
        (
            (100, 160, 120),
            ["Step 2 (quantize nf4) made the model slower here: 0.75 times the inputs a second of the model"],
        ),
        (
            (100, 80, 130),
            ["Step 1 (prune magnitude, keep 50%) made the model slower here: 0.80 times the inputs a second of its"],
        ),
        (
            (100, 85, 45),
            [
                "Step 1 (prune magnitude",
                "Step 2 (quantize nf4) made",
                "The 2 steps together made the model slower here: 0.45",
            ],
        ),
        ((100, None, 50), ["The 2 steps together made the model slower here: 0.50 times"]),
        ((100, 110, 120), []),
        ((100, 160, 148), []),
    ],
)
def test_each_step_that_made_the_model_slower_is_named(
    throughputs: tuple[float | None, ...], said: list[str], tmp_path: Path
) -> None:
    measured = [
        Stage(
            title="",
            size_bytes=1000,
            quality={},
            fidelity={},
            measurement=None if one is None else BEFORE.model_copy(update={"throughput": one}),
        )
        for one in throughputs
    ]
    *found, zeros = notes.on_measurements(order(tmp_path, MAGNITUDE, NF4), measured, 0.1)
    assert [note[: len(start)] for note, start in zip(found, said, strict=True)] == said
    assert zeros.startswith("0% of the result's parameters are zero")


def test_zeros_are_told(tmp_path: Path) -> None:
    [zeros] = notes.on_measurements(order(tmp_path, MAGNITUDE), stages(throughput=150, nonzeros=60), 0.1)
    assert zeros.startswith("40% of the result's parameters are zero, and 0% of its parent's")
    assert "neither time nor bytes" in zeros


def test_a_busy_machine(tmp_path: Path) -> None:
    [note] = notes.on_measurements(order(tmp_path, NF4), stages(throughput=150), 0.6)
    assert note.startswith("Something else was running: rounds of one measurement are 60% apart")


def test_more_bytes_than_before(tmp_path: Path) -> None:
    told = order(tmp_path, NF4)
    assert notes.on_sizes(told, stages(size=1000)) == []
    assert notes.on_sizes(told, stages(size=2500)) == ["The result takes 2.50 times the bytes of its parent."]
    write_gguf(tmp_path / "small.gguf")
    [note] = notes.on_sizes(told, stages(size=2500))
    assert note.endswith("the parent is a GGUF file, whose weights had to be unpacked.")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["no", 1, None], []),
        ([["no", "yes"], [], ["yes"]], []),
        ([["no", "cooking"], ["no"], None], ["1 of 2 labels are none of the model's, such as ['no', 'cooking']"]),
    ],
)
def test_labels_that_the_model_does_not_have(labels: list[object], said: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"id2label": {"0": "no", "1": "yes"}}')
    found = notes.on_labels(Task.CLASSIFY, [], labels, tmp_path)
    assert [note.partition(":")[0] for note in found] == said


def test_rows_that_a_model_does_not_compute() -> None:
    failed, other = ItemFailed("too_long", "it is too long"), ItemFailed("not_finite", "it is no number")
    assert notes.on_errors(Task.EMBED, 4, [("parent", {}), ("result", {})]) == []
    # What the parent does not compute is nothing that others could lose.
    assert notes.on_errors(Task.EMBED, 4, [("parent", {1: failed}), ("step 1", {}), ("result", {1: failed})]) == [
        "1 of 4 rows are left out: parent does not compute them (1 too_long)."
    ]
    errors = [("parent", {1: failed}), ("step 1", {0: other, 1: failed}), ("result", dict.fromkeys(range(4), other))]
    left_out, *lost = notes.on_errors(Task.EMBED, 4, errors)
    assert left_out.startswith("1 of 4 rows are left out")
    assert lost == [
        "step 1 does not compute 1 of 3 rows that parent does (1 not_finite): each counts as a fidelity of 0, and the "
        "other figures are of the rows that it does compute.",
        "result does not compute 3 of 3 rows that parent does (3 not_finite): so its fidelity is 0.",
    ]
    [note] = notes.on_errors(Task.SCORE, 4, [("parent", {}), ("result", {0: other})])
    assert "(1 not_finite): so its fidelity is 0, and the other figures" in note
