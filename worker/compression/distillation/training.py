"""A student learns: updates, looks at the held-out rows, and when to stop."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from contracts.compression import Training, TrainingPoint
from contracts.errors import CompressionFailed
from contracts.recipes import Distill
from worker.compression.distillation.checkpoints import Checkpoints, Standing
from worker.compression.distillation.data import Places, batches, passes
from worker.compression.distillation.lesson import Lesson
from worker.compression.distillation.optimization import make_optimizer, make_schedule
from worker.compression.order import Progress
from worker.engines.padding import Ids

LOOKS = 4
"""At the held-out rows, an epoch."""
PASS_TOKENS, GPU_PASS_TOKENS = 2_048, 8_192
"""Padded tokens that go through a student at once, on a processor and on a GPU; gradients of passes are added up."""
PASS_LOGITS, GPU_PASS_LOGITS = 2**25, 2**26
"""What a language model gives for a pass at most: 128 MB in float32, and a few copies stand at a time."""


class Course:
    """The training of one student, in one process, or in each of several that share every batch.

    Dropout stays off: targets are exact, and the noise that a step asks for is its augmentation's. So a training
    depends on nothing but the step, its rows and where it stands, and one that goes on from a checkpoint does what it
    would have done.

    Args:
        step: What to do.
        lesson: Its student is trained in place.
        folder: Of checkpoints.
        progress: Told how far it is.
    """

    def __init__(self, step: Distill, lesson: Lesson, folder: Path, progress: Progress) -> None:
        self._step = step
        self._lesson = lesson
        self._progress = progress
        on_gpu = torch.cuda.is_available()
        self._accelerator = Accelerator(
            cpu=not on_gpu,
            mixed_precision="bf16" if on_gpu else "no",
            # Of experts, for one, not all are asked in every pass.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self._device: torch.device = self._accelerator.device
        self._pass_tokens = GPU_PASS_TOKENS if on_gpu else PASS_TOKENS
        if logits := lesson.objective.logits:
            self._pass_tokens = min(self._pass_tokens, (GPU_PASS_LOGITS if on_gpu else PASS_LOGITS) // logits)
        self._student = lesson.student.to(self._device).eval()
        optimizer = make_optimizer(step, self._student, self._device)
        self._per_epoch = len(self._plan(0))
        self._updates = step.epochs * self._per_epoch
        self._module: torch.nn.Module
        self._optimizer: Optimizer
        self._module, self._optimizer = self._accelerator.prepare(self._student, optimizer)
        # Not prepared: the library would move it on once for each process.
        self._schedule: LRScheduler = make_schedule(step, optimizer, self._updates)
        self._accelerator.register_for_checkpointing(self._schedule)
        self._checkpoints = Checkpoints(folder, self._accelerator)
        self._zeros = _zeros(self._student)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self._accelerator.is_main_process)

    def run(self) -> Training:
        """Train, from the newest checkpoint where there is one; the student then has the weights that did best.

        Raises:
            CompressionFailed: A loss became no number before any update had made the student better.
        """
        standing = self._checkpoints.restore() or self._begin()
        looks = {math.ceil(self._per_epoch * i / LOOKS) for i in range(1, LOOKS + 1)}
        losses: list[float] = []
        plan: list[Places] = []
        for update in range(standing.update + 1, self._updates + 1):
            if standing.fruitless >= self._step.patience:
                return self._end(standing, "early")
            epoch, place = divmod(update - 1, self._per_epoch)
            if place == 0 or not plan:
                plan = self._plan(epoch)
            losses.append(self._update(update, plan[place]))
            finite = math.isfinite(losses[-1])
            if finite and place + 1 in looks:
                finite = self._look(standing, update, losses)
                losses = []
            if not finite:
                return self._diverged(standing, update)
            held_out_loss = standing.points[-1].held_out_loss
            message = f"epoch {epoch + 1} of {self._step.epochs}, held-out loss {held_out_loss:.4g}"
            self._progress(update / self._updates, message)
        return self._end(standing, "finished")

    def _begin(self) -> Standing:
        """The student before any update, whose loss is what all later ones are compared with."""
        standing = Standing()
        if not self._look(standing, 0, []):
            raise CompressionFailed("distill: the student gives what is no number before it is trained")
        return standing

    def _diverged(self, standing: Standing, update: int) -> Training:
        if standing.best == 0:
            raise CompressionFailed(
                f"distill: training diverged at update {update}, and no update before had made the student better: "
                f"take a learning_rate below {self._step.learning_rate:g}, or a clip_norm"
            )
        return self._end(standing, "diverged")

    def _end(self, standing: Standing, stopped: Literal["finished", "early", "diverged"]) -> Training:
        self._checkpoints.load_best(standing, self._student)
        return Training(points=standing.points, stopped=stopped, kept_update=standing.best)

    def _plan(self, epoch: int) -> list[Places]:
        """The batches of an epoch; all processes draw the same, and one that is too small for them is left out."""
        random = np.random.default_rng((self._step.seed, epoch))
        found = batches(self._lesson.training, self._lesson.tokens.lengths, self._step.batch_size, random)
        return [batch for batch in found if len(batch) >= self._accelerator.num_processes]

    def _update(self, update: int, batch: Places) -> float:
        """Move the weights by the gradient of the batch's loss; the loss.

        Where it or the gradient is no number, NaN or infinite, so is what comes back, and the weights stay.
        """
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        places = batch[rank::processes]
        random = np.random.default_rng((self._step.seed, update, rank))
        ids = self._lesson.tokens.varied(places, random)
        units = self._over_all(torch.tensor(self._units(ids), dtype=torch.float64))
        total = torch.zeros((), device=self._device)
        parts = passes(ids, self._pass_tokens)
        for number, part in enumerate(parts, 1):
            waits = nullcontext() if number == len(parts) else self._accelerator.no_sync(self._module)
            with waits:
                loss = self._loss(ids, places, part)
                # Gradients are averaged over processes, and this is a sum.
                self._accelerator.backward(loss * (processes / units))
            total += loss.detach()
        mean = self._over_all(total) / units
        if math.isfinite(mean) and self._step.clip_norm is not None:
            norm = self._accelerator.clip_grad_norm_(self._module.parameters(), self._step.clip_norm)
            mean = mean if math.isfinite(float(norm)) else math.nan
        if math.isfinite(mean):
            self._optimizer.step()
            self._schedule.step()
            for weight, zero in self._zeros:
                weight.data.masked_fill_(zero, 0.0)
        self._optimizer.zero_grad()
        return mean

    def _look(self, standing: Standing, update: int, losses: Sequence[float]) -> bool:
        """Compute the held-out rows and keep a checkpoint; whether their loss is a number."""
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        places = self._lesson.held_out[rank::processes]
        ids = self._lesson.tokens.of(places)
        total = torch.zeros((), device=self._device)
        with torch.no_grad(), self._accelerator.autocast():
            for part in passes(ids, self._pass_tokens):
                # Not the module of several processes: they may have different numbers of passes.
                total += self._loss(ids, places, part, self._student)
        units = self._over_all(torch.tensor(self._units(ids), dtype=torch.float64))
        found = self._over_all(total) / units
        if not math.isfinite(found):
            return False
        standing.update = update
        standing.points.append(
            TrainingPoint(
                update=update,
                epoch=update / self._per_epoch,
                loss=sum(losses) / len(losses) if losses else found,
                held_out_loss=found,
                learning_rate=float(self._schedule.get_last_lr()[0]),
            )
        )
        standing.fruitless += 1
        if found < standing.best_loss:
            standing.best, standing.best_loss, standing.fruitless = update, found, 0
        self._checkpoints.keep(standing, self._module)
        return True

    def _loss(
        self, ids: Sequence[Ids], places: Places, part: list[int], module: torch.nn.Module | None = None
    ) -> torch.Tensor:
        """Of some of the rows, summed."""
        chosen = [ids[i] for i in part]
        return self._lesson.objective.loss(module or self._module, chosen, places[part], self._device)

    def _units(self, ids: Sequence[Ids]) -> int:
        return sum(map(self._lesson.objective.units, ids))

    def _over_all(self, value: torch.Tensor) -> float:
        """The sum over processes."""
        return float(self._accelerator.reduce(value.to(self._device, torch.float32), "sum"))


def _zeros(student: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Linear layers' weights of which some are zero, and which: what a step before has pruned stays pruned."""
    linear = (layer.weight for layer in student.modules() if isinstance(layer, torch.nn.Linear))
    return [(weight, zero) for weight in linear if bool((zero := weight == 0).any())]
