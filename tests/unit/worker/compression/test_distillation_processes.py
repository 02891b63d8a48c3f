import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from contracts.errors import CompressionFailed
from contracts.names import Task
from contracts.recipes import Distill
from tests.distilling import distillation, order, save_layers, teacher_outputs, texts
from worker.compression.distillation import run
from worker.compression.distillation.processes import in_processes
from worker.compression.order import Order, Outcome, Progress


@pytest.fixture(scope="module")
def embeddings(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Order]:
    model = save_layers(encoder, tmp_path_factory.mktemp("encoder"), (0, 5))
    inputs = texts(64)
    teacher = teacher_outputs(model, Task.EMBED, inputs)
    return lambda folder: order(folder, model, inputs, teacher=teacher)


def members() -> list[psutil.Process]:
    """Processes of ours that train; the one that looks after Python's semaphores stays."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("spawn_main" in part for part in child.cmdline())]


def die(step: Distill, given: Order, progress: Progress) -> Outcome:
    """The second process dies; the first would wait for it."""
    import torch.distributed

    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
    torch.distributed.barrier()
    raise AssertionError("it waited for nobody")


def test_two_processes_train_as_one_does(embeddings: Callable[[Path], Order], tmp_path: Path) -> None:
    step = distillation(student=(1,), learning_rate=1e-3, batch_size=8, epochs=1, held_out=0.2)
    told: list[tuple[float, str]] = []
    alone = run(step, embeddings(tmp_path / "one"), lambda *_: None).training
    both = run(step.model_copy(update={"processes": 2}), embeddings(tmp_path / "two"), lambda *said: told.append(said))
    assert alone is not None
    assert both.training is not None
    # Batches are as large as one process would have them, and gradients are their mean over all rows.
    assert [point.update for point in both.training.points] == [point.update for point in alone.points]
    for one, two in zip(alone.points, both.training.points, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-3)
        assert two.held_out_loss == pytest.approx(one.held_out_loss, rel=1e-3)
    assert both.training.points[-1].held_out_loss < 0.7 * both.training.points[0].held_out_loss
    found = [teacher_outputs(tmp_path / name / "out", Task.EMBED, texts(8)) for name in ("one", "two")]
    assert (found[0] * found[1]).sum(1).min() > 0.9999
    assert any(words.startswith("epoch 1 of 1") for _, words in told)
    assert not members()


def test_the_death_of_a_process_fails_the_step_and_leaves_none(
    embeddings: Callable[[Path], Order], tmp_path: Path
) -> None:
    with pytest.raises(CompressionFailed, match="distill: process 2 of 2 was killed by SIGKILL"):
        in_processes(die, distillation(processes=2), embeddings(tmp_path), lambda *_: None)
    assert not members()


def test_what_a_process_refuses_is_said_as_one_would_say_it(
    embeddings: Callable[[Path], Order], tmp_path: Path
) -> None:
    given = replace(embeddings(tmp_path), teacher=None)
    with pytest.raises(CompressionFailed, match="process [12] of 2: what the teacher gave for the rows was not handed"):
        run(distillation(processes=2), given, lambda *_: None)
