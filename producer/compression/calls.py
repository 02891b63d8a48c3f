"""From a recipe to a job that stands: check it, keep its data, have the teacher's part scored, submit."""

from collections.abc import Iterable, Mapping
from typing import Any

from contracts.compression import CompressionSpec
from contracts.models import ModelSpec
from contracts.names import Task, check_model_name
from contracts.recipes import Dataset, Evaluation
from producer.compression import submission
from producer.compression.datasets import Datasets
from producer.compression.labels import Labels
from producer.compression.plan import Plan, make_plan
from producer.compression.submission import Terms
from producer.compression.teaching import Scorer, have_scored
from producer.submission import Accepted
from storage import models
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.modelfiles import read_config

SUFFIX = "-small"
"""Behind the parent's name, what the result is called by default: a version of the parent would be served at once."""


class Compressions:
    """Submits compressions.

    Args:
        database: Where jobs are kept.
        artifacts_url: Where the data of recipes is kept.
        max_bytes: What a line of a file may take.
    """

    def __init__(self, database: Database, artifacts_url: str, max_bytes: int) -> None:
        self._database = database
        self._store = ArtifactStore(artifacts_url)
        self._max_bytes = max_bytes

    def plan(self, model: str, recipe: Iterable[Any], *, accept: Any = None, evaluated: bool = False) -> Plan:
        """Check a recipe; see `make_plan`."""
        return make_plan(self._database, self._store, model, recipe, accept=accept, evaluated=evaluated)

    def dataset(self, model: str, data: Any) -> Dataset:
        """Rows for a model, in the artifact store."""
        with self._database.transaction() as connection:
            parent = models.get(connection, model)
        return self._datasets(parent, read_config(self._store, parent)).make("data", data)

    def _datasets(self, parent: ModelSpec, config: Mapping[str, Any]) -> Datasets:
        labels = Labels.of(config) if parent.task is Task.CLASSIFY else None
        return Datasets(self._database, self._store, parent, labels, self._max_bytes)

    def submit(
        self,
        model: str,
        recipe: Iterable[Any],
        *,
        name: str | None,
        evaluate: Any,
        accept: Any,
        asked: Terms,
        score: Scorer,
        traceparent: str | None = None,
    ) -> Accepted:
        """Do all of it."""
        plan = self.plan(model, recipe, accept=accept, evaluated=evaluate is not None)
        datasets = self._datasets(plan.parent, plan.config)
        spec = CompressionSpec(
            name=check_model_name(f"{plan.parent.name}{SUFFIX}" if name is None else name),
            recipe=plan.read(datasets),
            evaluate=None if evaluate is None else Evaluation(data=datasets.make("evaluate", evaluate)),
            accept=plan.accept,
        )
        stands = submission.standing(self._database, plan.parent, spec, asked)
        if stands is not None:
            return stands
        spec = spec.model_copy(update={"teachers": have_scored(self._store, plan.parent, spec.recipe, score)})
        return submission.submit(self._database, plan.parent, spec, asked, traceparent=traceparent)
