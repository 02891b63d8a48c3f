"""A look for memory and disk before each step of a compression."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

from contracts.compression import StepResult
from contracts.errors import DoesNotFit, UnknownModel
from contracts.models import ModelSpec
from contracts.preflight import ModelSize, needs
from contracts.recipes import Distill
from storage import models, overview
from storage.modelfiles import read_config
from worker.compression import room, supervision
from worker.compression.held import Held, Means
from worker.compression.patience import PatientDatabase
from worker.compression.scratch import Scratch


class Outlook:
    """Whether there is room for what a compression has before it.

    Args:
        means: Of the process.
        held: What is to be done.
        scratch: Where files are kept meanwhile.
        database: Waits while Postgres is away.
    """

    def __init__(self, means: Means, held: Held, scratch: Scratch, database: PatientDatabase) -> None:
        self._means = means
        self._held = held
        self._scratch = scratch
        self._database = database

    def check(self, position: int, done: Sequence[StepResult]) -> None:
        """See whether the step, or the evaluation behind the last one, fits, and the disk holds all that follows it.

        Raises:
            Shortage: There is not enough now.
            DoesNotFit: There never is, or the job has rested for it for too long.
        """
        parent, spec = self._held.target.model, self._held.spec
        size, evaluated = self._size(parent), spec.evaluate is not None
        found = needs(spec.recipe, size, parent.task, evaluated=evaluated, students=self._students)
        fetched = self._scratch.fetched()
        missing = sum(result.size_bytes for result in done if not (fetched / result.digest).is_dir())
        looks = self._scratch.looks(position)
        try:
            hosts = self._database.transact(overview.compressors)
            room.check(found[position - 1 :], self._scratch.folder, missing, hosts)
        except room.Shortage as error:
            self._bear(error, looks)
            raise
        looks.unlink(missing_ok=True)

    def _bear(self, shortage: room.Shortage, looks: Path) -> None:
        """Let the job rest until there is memory, unless it has rested for it as long as a step may take.

        Each look leaves a byte, so that no time counts when nobody looked.
        """
        looks.parent.mkdir(exist_ok=True)
        with looks.open("ab") as file:
            file.write(b".")
            rested = (file.tell() - 1) * supervision.REST.total_seconds()
        if rested >= self._means.settings.compression_step_seconds:
            raise DoesNotFit(
                f"{shortage}, and the job has rested for it for {rested:,.0f} s: free some, or give the host more, and "
                "submit again"
            ) from None

    @cached_property
    def _students(self) -> dict[str, ModelSize]:
        """How large the registered models are that distillations go on with; the step itself misses a removed one."""
        found = {}
        for step in self._held.spec.recipe:
            if isinstance(step, Distill) and isinstance(step.student, str):
                with suppress(UnknownModel):
                    model = self._database.transact(partial(models.get, reference=step.student))
                    found[step.student] = self._size(model)
        return found

    def _size(self, model: ModelSpec) -> ModelSize:
        return ModelSize.of_model(model, read_config(self._means.store, model))
