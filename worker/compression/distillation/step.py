"""The step `distill` of a recipe."""

import torch

from contracts.compression import Training
from contracts.recipes import Distill
from worker.compression.artifacts import notes_on, save
from worker.compression.distillation.lesson import Lesson, prepare
from worker.compression.distillation.processes import in_processes
from worker.compression.distillation.student import saved_type, student_folder
from worker.compression.distillation.training import Course
from worker.compression.order import Order, Outcome, Progress


def run(step: Distill, order: Order, progress: Progress) -> Outcome:
    """Train the student and write it, as it was when it did best on the held-out rows.

    An attempt that was killed goes on from its last checkpoint in `order.scratch`. In one process, equal steps on equal
    files write equal bytes.

    Raises:
        CompressionFailed: Step, rows, teacher and student do not fit each other, or the training diverged before it had
            made the student better.
        ModelLoadFailed: A model could not be loaded, or is quantized.
    """
    progress(0.0, "reading")
    if step.processes > 1:
        return in_processes(train, step, order, progress)
    return train(step, order, progress)


def train(step: Distill, order: Order, progress: Progress) -> Outcome:
    """Train the student, in this process and those that it is in company with; the first of them writes it."""
    lesson = prepare(step, order)
    config = lesson.student.config
    cached = getattr(config, "use_cache", None)
    if cached is not None:
        config.use_cache = False
    course = Course(step, lesson, order.scratch / "training", progress)
    training = course.run()
    if cached is not None:
        config.use_cache = cached
    if course.leads:
        progress(1.0, "writing")
        dtype = getattr(torch, saved_type(step, order).least_precision)
        save(lesson.student.to("cpu", dtype), student_folder(step, order), order.destination)  # type: ignore[arg-type]
    notes = [*notes_on(student_folder(step, order)), *_notes(lesson, training)]
    return Outcome(order.quantization, notes, training)


def _notes(lesson: Lesson, training: Training) -> list[str]:
    """What a reader of the report should know."""
    notes = []
    if lesson.left_out:
        notes.append(f"{lesson.left_out} rows were left out: they are no texts, too short, or failed with the teacher.")
    best = min(point.held_out_loss for point in training.points)
    if training.stopped == "diverged":
        notes.append(
            "The training diverged: a loss became no number. Kept is the student as it was after update "
            f"{training.kept_update}, the best of all looks, with a held-out loss of {best:.4g}."
        )
    if training.kept_update == 0:
        notes.append(
            f"No update made the student better on the held-out rows, where its loss was {best:.4g}: it is what it was "
            "before the training."
        )
    return notes
