"""Where a training stands, on disk: a process that is killed at any time leaves a whole checkpoint, or none."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_model, save_model

from contracts.compression import TrainingPoint

STANDING = "standing.json"
UNFINISHED = ".unfinished"


@dataclass
class Standing:
    """How far a training is, and how it went."""

    update: int = 0
    points: list[TrainingPoint] = field(default_factory=list)
    best: int = 0
    """The update after which the weights stood that did best on the held-out rows."""
    best_loss: float = float("inf")
    fruitless: int = 0
    """Looks since then."""


class Checkpoints:
    """Checkpoints of one training, the newest only, and the weights that did best until then.

    Args:
        folder: Theirs alone; shared by the processes of a training.
        accelerator: Prepared the weights, the optimizer and the schedule that are saved.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self._folder = folder
        self._accelerator = accelerator

    def keep(self, standing: Standing, module: torch.nn.Module) -> None:
        """Save all that a training needs to go on from here, with the weights where they are the best so far."""
        folder = self._of(standing.update)
        unfinished = folder.with_suffix(UNFINISHED)
        if self._accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            if standing.best == standing.update:
                self._keep_best(standing.best, module)
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(unfinished))
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            values = asdict(standing) | {"points": [point.model_dump() for point in standing.points]}
            (unfinished / STANDING).write_text(json.dumps(values), encoding="utf-8")
            _flush(unfinished)
            unfinished.rename(folder)
            self._tidy(standing)

    def restore(self) -> Standing | None:
        """Put weights, optimizer and schedule back to where the newest checkpoint has them, if there is one."""
        found = sorted(folder for folder in self._folder.glob("at-*") if folder.suffix != UNFINISHED)
        if not found:
            return None
        self._accelerator.load_state(str(found[-1]))
        values = json.loads((found[-1] / STANDING).read_text(encoding="utf-8"))
        points = [TrainingPoint.model_validate(point) for point in values.pop("points")]
        return Standing(points=points, **values)

    def load_best(self, standing: Standing, module: torch.nn.Module) -> None:
        """Put the weights back to where they did best."""
        load_model(module, self._best(standing.best), strict=False)

    def _keep_best(self, update: int, module: torch.nn.Module) -> None:
        unfinished = self._best(update).with_suffix(UNFINISHED)
        save_model(self._accelerator.unwrap_model(module), str(unfinished))
        unfinished.rename(self._best(update))

    def _tidy(self, standing: Standing) -> None:
        """Remove what the newest checkpoint does not need."""
        for path in self._folder.iterdir():
            if path in (self._of(standing.update), self._best(standing.best)):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _of(self, update: int) -> Path:
        return self._folder / f"at-{update:09}"

    def _best(self, update: int) -> Path:
        return self._folder / f"best-{update:09}.safetensors"


def _flush(folder: Path) -> None:
    """See to it that files are on disk before the name says that they are whole: a host may lose its power."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
