"""What steps need, beforehand."""

from typing import Any

import pytest

from contracts.models import ArtifactFile
from contracts.names import Quantization, Task
from contracts.preflight import PROCESS_BYTES, ModelSize, all_disk, most_memory, needs
from contracts.recipes import Dataset, parse_recipe

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "vocab_size": 30_522}
SIZE = ModelSize.of(MINILM, memory_bytes=90_000_000, disk_bytes=91_000_000)
ROWS = Dataset(file=ArtifactFile(path="rows.jsonl", sha256="0" * 64, size=1), rows=10)


def memory(step: dict[str, Any], size: ModelSize = SIZE, task: Task = Task.EMBED) -> int:
    return needs(parse_recipe([step]), size, task)[0].memory_bytes


def distill(**options: Any) -> dict[str, Any]:
    return {"step": "distill", "data": ROWS, **options}


def test_a_config_says_how_large_a_model_is() -> None:
    assert (SIZE.width, SIZE.layers, SIZE.vocabulary) == (384, 6, 30_522)
    distilbert = ModelSize.of({"dim": 768, "n_layers": 6, "vocab_size": 1}, memory_bytes=1, disk_bytes=1)
    assert (distilbert.width, distilbert.layers) == (768, 6)
    unknown = ModelSize.of({"hidden_size": "wide"}, memory_bytes=1, disk_bytes=1)
    assert unknown.width >= 768
    assert unknown.layers >= 12


def test_training_takes_the_most() -> None:
    plain = memory({"step": "quantize", "method": "nf4"})
    assert plain == PROCESS_BYTES + 2 * SIZE.memory_bytes
    assert plain < memory({"step": "prune", "method": "magnitude", "keep_ratio": 0.5}) < memory(distill())


def test_training_grows_with_the_batch_up_to_a_pass_and_with_processes() -> None:
    assert memory(distill(batch_size=2)) < memory(distill(batch_size=8)) <= memory(distill(batch_size=32))
    assert memory(distill(batch_size=512)) == memory(distill(batch_size=4096))
    assert memory(distill(processes=2)) > 1.5 * memory(distill())


def test_a_language_model_is_taught_with_its_teacher_beside_it() -> None:
    alone, beside = memory(distill()), memory(distill(), task=Task.GENERATE)
    assert beside - alone >= SIZE.memory_bytes


@pytest.mark.parametrize("quantization", [Quantization.BF16, Quantization.FP16])
def test_students_and_graphs_are_float32_whatever_the_parent_is_held_in(quantization: Quantization) -> None:
    half = ModelSize.of(MINILM, memory_bytes=45_000_000, disk_bytes=46_000_000, quantization=quantization)
    for step in (distill(), {"step": "export"}):
        assert memory(step, half) == memory(step)
    for step in ({"step": "prune", "method": "magnitude", "keep_ratio": 0.5}, {"step": "quantize", "method": "nf4"}):
        assert memory(step, half) < memory(step)
    (graph,) = needs(parse_recipe([{"step": "export"}]), half, Task.EMBED)
    assert graph.disk_bytes == 2 * SIZE.memory_bytes
    # The graph is measured as large as it is.
    evaluation = needs(parse_recipe([{"step": "export"}]), half, Task.EMBED, evaluated=True)[-1]
    assert evaluation.memory_bytes == 3 * PROCESS_BYTES + 2 * SIZE.memory_bytes


def test_a_model_is_evaluated_by_three_processes() -> None:
    recipe = parse_recipe([{"step": "quantize", "method": "nf4"}])
    *_, evaluation = needs(recipe, SIZE, Task.EMBED, evaluated=True)
    assert evaluation.memory_bytes == 3 * PROCESS_BYTES + 2 * SIZE.memory_bytes


def test_steps_and_the_evaluation_each_say_what_they_need() -> None:
    recipe = parse_recipe(
        [
            {"step": "prune", "method": "structured", "keep_ratio": 0.5},
            distill(),
            {"step": "quantize", "method": "bf16"},
        ]
    )
    found = needs(recipe, SIZE, Task.EMBED, evaluated=True)
    assert [need.title for need in found] == ["prune structured, keep 50%", "distill", "quantize bf16", "evaluation"]
    assert most_memory(found[:3]).title == "distill"
    assert all_disk(found) == sum(need.disk_bytes for need in found)
    assert found[1].disk_bytes > found[0].disk_bytes > found[2].disk_bytes > found[3].disk_bytes == 0
    assert len(needs(recipe, SIZE, Task.EMBED)) == 3


def test_a_registered_student_is_as_large_as_it_is_from_its_step_on() -> None:
    parent = ModelSize.of({}, memory_bytes=4_000_000_000, disk_bytes=4_000_000_000)
    packed = {"step": "quantize", "method": "nf4"}
    recipe, alone = parse_recipe([packed | {"method": "bf16"}, distill(student="small@1"), packed]), [distill(), packed]
    first, *rest = needs(recipe, parent, Task.EMBED, students={"small@1": SIZE})
    assert first.memory_bytes > 2 * parent.memory_bytes
    expected = needs(parse_recipe(alone), SIZE, Task.EMBED)
    assert [(n.memory_bytes, n.disk_bytes) for n in rest] == [(n.memory_bytes, n.disk_bytes) for n in expected]
    # The teacher of a language model is there beside it, and the evaluation measures the parent.
    beside = needs(recipe, parent, Task.SCORE, evaluated=True, students={"small@1": SIZE})
    less = needs(parse_recipe(alone), SIZE, Task.SCORE)
    assert beside[1].memory_bytes - less[0].memory_bytes == parent.memory_bytes - SIZE.memory_bytes
    assert beside[-1].memory_bytes > 2 * parent.memory_bytes
    unknown = needs(recipe, parent, Task.EMBED)
    assert unknown[1].memory_bytes > 4 * parent.memory_bytes


@pytest.mark.parametrize("task", list(Task))
def test_nothing_is_free(task: Task) -> None:
    for step in ({"step": "export"}, {"step": "quantize", "method": "int8"}):
        (need,) = needs(parse_recipe([step]), SIZE, task)
        assert need.memory_bytes > PROCESS_BYTES
        assert need.disk_bytes >= SIZE.disk_bytes
