"""All that a training needs, put together and checked before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from contracts.errors import CompressionFailed
from contracts.names import Task
from contracts.recipes import Distill, check_for_task
from worker.compression.artifacts import KINDS, transformer_folder
from worker.compression.distillation import losses
from worker.compression.distillation.data import Places, Rows, Tokens, read_rows, split
from worker.compression.distillation.objectives import Embeddings, Labels, NextTokens, Objective, choice, choices
from worker.compression.distillation.student import load_student, student_folder
from worker.compression.order import Order
from worker.engines.classify import read_labels
from worker.engines.sentence import read_sentence_model
from worker.loading import load_module, load_tokenizer

REGRESSION, MULTI_LABEL, SINGLE_LABEL = "regression", "multi_label_classification", "single_label_classification"


@dataclass(frozen=True)
class Lesson:
    """A student, what it reads, and what it is to reach."""

    student: PreTrainedModel
    tokens: Tokens
    objective: Objective
    training: Places
    """Rows to learn from."""
    held_out: Places
    left_out: int
    """Rows that nothing can be learned from: no texts, or none that the teacher could compute."""


def prepare(step: Distill, order: Order) -> Lesson:
    """Load the student, read the rows, and see that they fit each other.

    Raises:
        CompressionFailed: They do not; the message says which, and what to change.
        InvalidRequest: An option is none of the task's.
        ModelLoadFailed: A model could not be loaded.
    """
    check_for_task([step], order.task)
    if order.data is None:
        raise CompressionFailed("distill: the rows to learn from were not handed over")
    rows = read_rows(order.data, step.data.labelled and order.task is Task.CLASSIFY and step.hard_weight != 0)
    student = load_student(step, order)
    folder = student_folder(step, order)
    teacher = None if order.task in (Task.GENERATE, Task.SCORE) else _teacher_outputs(order, len(rows.inputs))
    objective = _objective(step, order, student, folder, rows, teacher)
    tokens = Tokens(order.task, folder, student.config, step.max_tokens, step.augmentation)
    usable = tokens.read(rows.inputs)
    if teacher is not None:
        usable = usable[np.isfinite(teacher[usable]).all(-1)]
    training, held_out = split(rows.inputs, usable, step.held_out, step.seed)
    if len(training) < step.processes or step.batch_size < step.processes:
        raise CompressionFailed(
            f"distill: {step.processes} processes share {len(training)} rows in batches of {step.batch_size}: "
            "take fewer processes, so that each has a row"
        )
    return Lesson(student, tokens, objective, training, held_out, len(rows.inputs) - len(usable))


def _objective(
    step: Distill,
    order: Order,
    student: PreTrainedModel,
    folder: Path,
    rows: Rows,
    teacher: NDArray[np.float32] | None,
) -> Objective:
    hard_weight = 0.5 if step.hard_weight is None else step.hard_weight
    if teacher is None:
        _check_vocabulary(step, order, folder)
        parent = load_module(transformer_folder(order.parent), order.parent_quantization, _device(), KINDS[order.task])
        parent.requires_grad_(False)
        if parent.config.get_text_config().vocab_size != student.config.get_text_config().vocab_size:
            raise CompressionFailed(f"distill: {_named(step)} chooses from another number of tokens than its teacher")
        return NextTokens(parent, step.temperature, hard_weight)
    if order.task is Task.EMBED:
        sentence = read_sentence_model(folder)
        width = len(sentence.poolings) * int(student.config.hidden_size)
        if width != teacher.shape[1]:
            raise CompressionFailed(
                f"distill: {_named(step)} embeds in {width} dimensions, and its teacher in {teacher.shape[1]}: "
                "take a student of the same"
            )
        pad_id: int = load_tokenizer(sentence.transformer).pad_token_id or 0
        return Embeddings(sentence, pad_id, teacher, step.loss or "cosine")
    names = read_labels(folder)
    if names != read_labels(order.parent):
        raise CompressionFailed(
            f"distill: {_named(step)} has the labels {', '.join(names)}, and its teacher "
            f"{', '.join(read_labels(order.parent))}: take a student with the same, in the same order"
        )
    return _labels_objective(step, student, names, rows.labels, teacher, hard_weight)


def _labels_objective(
    step: Distill,
    student: PreTrainedModel,
    names: Sequence[str],
    labels: Sequence[Any] | None,
    teacher: NDArray[np.float32],
    hard_weight: float,
) -> Objective:
    """By what the engine makes of the outputs: a choice of one, decisions about each, or bare numbers."""
    kind = student.config.problem_type or (REGRESSION if len(names) == 1 else SINGLE_LABEL)
    if step.loss == "kl" and kind == REGRESSION:
        raise CompressionFailed(
            "distill: the student gives bare numbers, and kl compares distributions: leave loss out"
        )
    if teacher.shape[1] != len(names):
        raise CompressionFailed(f"distill: the teacher gave {teacher.shape[1]} scores a row for {len(names)} labels")
    right = None if labels is None else _right(labels, names, kind)
    pad_id = int(student.config.get_text_config().pad_token_id)
    match kind:
        case "regression":
            return Labels(pad_id, teacher, losses.mse, right, losses.mse, hard_weight)
        case "multi_label_classification":
            soft = partial(losses.kl_of_sigmoids, temperature=step.temperature)
            return Labels(pad_id, teacher, soft, right, choices, hard_weight)
        case _:
            soft = partial(losses.kl_of_scores, temperature=step.temperature)
            return Labels(pad_id, teacher, soft, right, choice, hard_weight)


def _right(labels: Sequence[Any], names: Sequence[str], kind: str) -> NDArray[np.float32]:
    """Labels of rows as `[rows, k]`: 1 for the right ones and 0 for others, or what a regression is to give."""
    found = np.zeros((len(labels), len(names)), np.float32)
    place = {name: i for i, name in enumerate(names)}
    for number, label in enumerate(labels):
        try:
            if kind == REGRESSION:
                found[number] = label
            else:
                chosen = label if kind == MULTI_LABEL and isinstance(label, list) else [label]
                found[number, [place[name] for name in chosen]] = 1
        except (KeyError, TypeError, ValueError):
            wanted = "a number for each output" if kind == REGRESSION else f"one of {', '.join(names)}"
            raise CompressionFailed(
                f"distill: line {number + 1} of the rows: label {label!r:.60} is not {wanted}"
            ) from None
    return found


def _teacher_outputs(order: Order, rows: int) -> NDArray[np.float32]:
    """What the teacher gave for each row, read as it is needed."""
    if order.teacher is None:
        raise CompressionFailed("distill: what the teacher gave for the rows was not handed over")
    found: NDArray[np.float32] = np.load(order.teacher, mmap_mode="r", allow_pickle=False)
    if found.ndim != 2 or len(found) != rows:
        raise CompressionFailed(f"distill: the teacher's outputs have the shape {list(found.shape)} for {rows} rows")
    return found


def _check_vocabulary(step: Distill, order: Order, folder: Path) -> None:
    """A divergence compares token by token: each id has to mean the same to both."""
    if not isinstance(step.student, str):
        return
    mine, theirs = (load_tokenizer(transformer_folder(place)).get_vocab() for place in (folder, order.parent))
    if mine != theirs:
        raise CompressionFailed(
            f"distill: {_named(step)} has another vocabulary than its teacher, so their tokens cannot be compared: "
            "take a student of the same family"
        )


def _device() -> str:
    """Where this process trains."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _named(step: Distill) -> str:
    return f"the student {step.student}" if isinstance(step.student, str) else "the student"
