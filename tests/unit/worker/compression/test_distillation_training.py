import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from contracts.errors import CompressionFailed, InvalidRequest
from contracts.names import Quantization, Task
from contracts.recipes import Distill
from tests.distilling import distillation, order, save_layers, teacher_outputs, texts
from tests.steps import digest
from worker.compression.distillation import run
from worker.compression.distillation.data import batches
from worker.compression.distillation.lesson import prepare
from worker.compression.distillation.training import LOOKS
from worker.compression.order import Order, Outcome

LABELS = ["asyncio", "email", "logging", "multiprocessing", "unittest"]
RUN = """
import os, pickle, signal, sys, threading
from worker.compression.distillation import run
step, order = pickle.load(open(sys.argv[1], "rb"))
def progress(fraction, words):
    if fraction > 0.5:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()

run(step, order, progress)
"""
"""Killed in the midst of what it does."""


@pytest.fixture(scope="module")
def encoder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers."""
    return save_layers(encoder, tmp_path_factory.mktemp("encoder"), (0, 5))


@pytest.fixture(scope="module")
def embeddings(encoder: Path) -> Callable[..., Order]:
    """Orders to distill the encoder on 64 texts."""
    inputs = texts(64)
    teacher = teacher_outputs(encoder, Task.EMBED, inputs)
    return lambda folder, **more: order(folder, encoder, inputs, teacher=teacher, **more)


def quietly(fraction: float, words: str) -> None:
    assert 0 <= fraction <= 1
    assert words


def losses(outcome: Outcome) -> list[float]:
    assert outcome.training is not None
    return [point.held_out_loss for point in outcome.training.points]


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_a_student_of_embeddings_comes_nearer_to_its_teacher(
    loss: str, encoder: Path, embeddings: Callable[..., Order], tmp_path: Path
) -> None:
    given = embeddings(tmp_path)
    told: list[tuple[float, str]] = []
    step = distillation(student=(1,), loss=loss, learning_rate=1e-3, batch_size=8, epochs=3, held_out=0.2)
    outcome = run(step, given, lambda *said: told.append(said))
    assert outcome.quantization is Quantization.NONE
    assert outcome.notes == []
    assert outcome.training is not None
    assert outcome.training.stopped == "finished"
    found = losses(outcome)
    assert min(found) < 0.5 * found[0]
    # What was written is what did best, and the engine serves it.
    best = next(point for point in outcome.training.points if point.update == outcome.training.kept_update)
    assert best.held_out_loss == min(found)
    inputs = texts(64)
    wanted, served = (teacher_outputs(folder, Task.EMBED, inputs) for folder in (encoder, given.destination))
    assert (served * wanted).sum(1).mean() > 0.7
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)
    assert any(words.startswith("epoch 2 of 3, held-out loss 0.") for _, words in told)


def test_a_training_is_looked_at_four_times_an_epoch(embeddings: Callable[..., Order], tmp_path: Path) -> None:
    outcome = run(
        distillation(student=(0,), batch_size=4, epochs=2, held_out=0.25, warmup=0), embeddings(tmp_path), quietly
    )
    assert outcome.training is not None
    points = outcome.training.points
    assert [point.update for point in points] == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert points[LOOKS].epoch == 1.0
    assert points[0].loss == points[0].held_out_loss
    rates = [point.learning_rate for point in points]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1e-4
    assert rates[-1] == 0


def test_gradients_are_scaled_down_to_the_norm_that_is_given(embeddings: Callable[..., Order], tmp_path: Path) -> None:
    moved = {}
    for clip_norm in (None, 1e-6):
        step = distillation(
            student=(0,),
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=0,
            schedule="constant",
            warmup=0,
            batch_size=16,
            epochs=1,
            clip_norm=clip_norm,
        )
        found = losses(run(step, embeddings(tmp_path / str(clip_norm)), quietly))
        moved[clip_norm] = max(abs(loss - found[0]) for loss in found)
    assert moved[1e-6] < 1e-5 < 1e-3 < moved[None]


def test_equal_steps_write_equal_bytes(embeddings: Callable[..., Order], tmp_path: Path) -> None:
    step = distillation(student=(0,), batch_size=16, epochs=1, augmentation={"word_swap": 0.1, "token_dropout": 0.1})
    found = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        given = embeddings(tmp_path / name)
        run(step.model_copy(update={"seed": seed}), given, quietly)
        found.append(digest(given.destination))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit"])
def test_a_killed_training_ends_as_if_it_had_not_been_killed(
    optimizer: str, embeddings: Callable[..., Order], tmp_path: Path
) -> None:
    step = distillation(
        student=(0,),
        batch_size=8,
        epochs=3,
        learning_rate=5e-4,
        optimizer=optimizer,
        augmentation={"word_deletion": 0.1},
    )
    whole, killed = embeddings(tmp_path / "whole"), embeddings(tmp_path / "killed")
    uninterrupted = run(step, whole, quietly)
    (tmp_path / "order").write_bytes(pickle.dumps((step, killed)))
    child = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "order")],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        timeout=300,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert not any(killed.destination.iterdir())
    told: list[float] = []
    outcome = run(step, killed, lambda fraction, words: told.append(fraction))
    assert told[1] > 0.4, "it began anew"
    assert outcome == uninterrupted
    assert digest(killed.destination) == digest(whole.destination)


def test_a_training_without_a_gain_stops_early(embeddings: Callable[..., Order], tmp_path: Path) -> None:
    given = embeddings(tmp_path)
    outcome = run(distillation(batch_size=8, epochs=50, patience=2, learning_rate=1e-3), given, quietly)
    assert outcome.training is not None
    # The student is the teacher: nothing makes it better.
    assert outcome.training.stopped == "early"
    assert len(outcome.training.points) == 3
    assert outcome.training.kept_update == 0
    [note] = outcome.notes
    assert note.startswith("No update made the student better")
    assert digest(given.destination)


def spoiled(given: Order, step: Distill, batch: int) -> None:
    """Let the teacher say something of a row of one of the first epoch's batches whose square is no number."""
    lesson = prepare(step, given)
    drawn = np.random.default_rng((step.seed, 0))
    plan = batches(lesson.training, lesson.tokens.lengths, step.batch_size, drawn)
    assert given.teacher is not None
    teacher = np.load(given.teacher)
    teacher[plan[batch][0]] = 1e30
    np.save(given.teacher, teacher)


def test_a_diverging_training_keeps_the_last_good_checkpoint(embeddings: Callable[..., Order], tmp_path: Path) -> None:
    given = embeddings(tmp_path)
    step = distillation(student=(0,), batch_size=4, loss="mse", learning_rate=1e-3)
    spoiled(given, step, -1)
    outcome = run(step, given, quietly)
    assert outcome.training is not None
    assert outcome.training.stopped == "diverged"
    assert outcome.training.kept_update > 0
    assert min(losses(outcome)) < losses(outcome)[0]
    [note] = outcome.notes
    assert note.startswith("The training diverged: a loss became no number.")
    assert np.isfinite(teacher_outputs(tmp_path / "out", Task.EMBED, ["a text"])).all()


def test_a_training_that_diverges_at_once_fails(embeddings: Callable[..., Order], tmp_path: Path) -> None:
    given = embeddings(tmp_path)
    step = distillation(student=(0,), batch_size=4, loss="mse")
    spoiled(given, step, 0)
    with pytest.raises(CompressionFailed, match="diverged at update 1, .*: take a learning_rate below"):
        run(step, given, quietly)
    assert not any((tmp_path / "out").iterdir())


def test_what_was_pruned_before_stays_pruned(encoder: Path, tmp_path: Path) -> None:
    pruned = shutil.copytree(encoder, tmp_path / "pruned")
    weights = load_file(pruned / "model.safetensors")
    name = next(name for name in weights if name.endswith("intermediate.dense.weight"))
    weights[name][:, ::2] = 0.0
    save_file(weights, pruned / "model.safetensors", {"format": "pt"})
    given = order(tmp_path, pruned, texts(64), teacher=teacher_outputs(encoder, Task.EMBED, texts(64)))
    run(distillation(batch_size=8, epochs=2, held_out=0.2), given, quietly)
    found = load_file(given.destination / "model.safetensors")[name]
    assert not found[:, ::2].any()
    assert not torch.equal(found, weights[name])


def divergence(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Of scores from others, a row."""
    return float((wanted * np.log(wanted / found)).sum(1).mean())


@pytest.mark.parametrize(("labelled", "share"), [(True, 0.9), (False, 0.7)])
def test_a_student_of_labels_comes_nearer(labelled: bool, share: float, classifier: Path, tmp_path: Path) -> None:
    inputs = texts(64)
    labels = [LABELS[i] for i in teacher_outputs(classifier, Task.CLASSIFY, inputs).argmax(1)] if labelled else None
    given = order(tmp_path, classifier, inputs, task=Task.CLASSIFY, labels=labels)
    step = distillation(
        student=(1,), labelled=labelled, learning_rate=1e-3, batch_size=8, epochs=12, held_out=0.2, patience=40
    )
    found = losses(run(step, given, quietly))
    assert min(found) < share * found[0]
    untrained = save_layers(classifier, tmp_path / "untrained", (1,), AutoModelForSequenceClassification)
    wanted, begun, served = (
        teacher_outputs(folder, Task.CLASSIFY, inputs) for folder in (classifier, untrained, given.destination)
    )
    assert divergence(wanted, served) < 0.8 * divergence(wanted, begun)


def test_labels_of_which_a_row_has_several(classifier: Path, tmp_path: Path) -> None:
    model = save_layers(
        classifier,
        tmp_path / "several",
        (0,),
        AutoModelForSequenceClassification,
        problem_type="multi_label_classification",
    )
    inputs = texts(32)
    labels = [[LABELS[i % 5], LABELS[(i + 1) % 5]] for i in range(32)]
    given = order(tmp_path / "order", model, inputs, task=Task.CLASSIFY, labels=labels)
    step = distillation(labelled=True, batch_size=8, epochs=3, held_out=0.2, hard_weight=0.9)
    found = losses(run(step, given, quietly))
    assert min(found) < found[0]


def test_a_regression_comes_nearer(reranker: Path, tmp_path: Path) -> None:
    model = save_layers(
        reranker, tmp_path / "one", (0, 1), AutoModelForSequenceClassification, problem_type="regression"
    )
    inputs = texts(48)
    labels = [len(text) / 100 for text in inputs]
    given = order(tmp_path / "order", model, inputs, task=Task.CLASSIFY, labels=labels)
    step = distillation(student=(1,), labelled=True, batch_size=8, epochs=4, held_out=0.2)
    found = losses(run(step, given, quietly))
    assert min(found) < 0.8 * found[0]
    with pytest.raises(CompressionFailed, match="gives bare numbers.*leave loss out"):
        run(step.model_copy(update={"loss": "kl"}), given, quietly)


@pytest.mark.parametrize(
    ("model", "epochs", "learning_rate", "share"),
    [
        ("language_model", 6, 3e-3, 0.95),
        pytest.param("real_language_model", 1, 1e-3, 0.8, marks=pytest.mark.verify),
    ],
)
def test_a_language_model_expects_what_its_teacher_expects(
    model: str, epochs: int, learning_rate: float, share: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    given = order(tmp_path, request.getfixturevalue(model), texts(24), task=Task.SCORE)
    step = distillation(
        student=(0,),
        learning_rate=learning_rate,
        batch_size=4,
        epochs=epochs,
        held_out=0.25,
        max_tokens=16,
        hard_weight=0.2,
    )
    outcome = run(step, given, quietly)
    assert min(losses(outcome)) < share * losses(outcome)[0]
    assert outcome.training is not None
    assert outcome.training.kept_update > 0


@pytest.mark.parametrize(
    ("options", "task", "says"),
    [
        ({"loss": "kl"}, Task.EMBED, "choose cosine or mse"),
        ({"hard_weight": 0.5}, Task.CLASSIFY, "the data has no label"),
        ({}, Task.RERANK, "nothing teaches a model that reranks"),
        ({"processes": 64, "batch_size": 8}, Task.EMBED, "64 processes share .* in batches of 8"),
    ],
)
def test_what_does_not_suit_the_task_is_refused(
    options: dict[str, Any], task: Task, says: str, embeddings: Callable[..., Order], tmp_path: Path
) -> None:
    with pytest.raises((CompressionFailed, InvalidRequest), match=says):
        prepare(distillation(**options), replace(embeddings(tmp_path), task=task))


def test_a_student_of_another_shape_is_refused(
    encoder: Path, classifier: Path, language_model: Path, embeddings: Callable[..., Order], tmp_path: Path
) -> None:
    named = distillation(student="other@1")
    with pytest.raises(CompressionFailed, match="other@1 embeds in 64 dimensions, and its teacher in 32"):
        given = embeddings(tmp_path / "width", student=encoder)
        np.save(given.teacher, np.zeros((64, 32), np.float32))  # type: ignore[arg-type]
        run(named, given, quietly)
    inputs = texts(4)
    given = order(tmp_path / "labels", classifier, inputs, task=Task.CLASSIFY, student=classifier)
    other = save_layers(
        classifier,
        tmp_path / "renamed",
        (0,),
        AutoModelForSequenceClassification,
        id2label={i: name.upper() for i, name in enumerate(LABELS)},
    )
    with pytest.raises(CompressionFailed, match="other@1 has the labels ASYNCIO"):
        run(named, replace(given, student=other), quietly)


def test_labels_that_the_model_has_not_are_refused(classifier: Path, tmp_path: Path) -> None:
    inputs = texts(4)
    given = order(tmp_path, classifier, inputs, task=Task.CLASSIFY, labels=["email", "email", "nobody", "email"])
    with pytest.raises(CompressionFailed, match="line 3 of the rows: label 'nobody' is not one of asyncio"):
        run(distillation(labelled=True), given, quietly)


def test_rows_that_the_teacher_could_not_compute_are_left_out(embeddings: Callable[..., Order], tmp_path: Path) -> None:
    given = embeddings(tmp_path)
    assert given.teacher is not None
    teacher = np.load(given.teacher)
    teacher[3] = np.nan
    np.save(given.teacher, teacher)
    outcome = run(distillation(student=(0,), epochs=1), given, quietly)
    assert outcome.notes[0].startswith("1 rows were left out")
    np.save(given.teacher, teacher[:5])
    with pytest.raises(CompressionFailed, match=r"outputs have the shape \[5, 64\] for 64 rows"):
        run(distillation(student=(0,)), given, quietly)
