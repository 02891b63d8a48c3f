"""What a worker counts: one call for each micro-batch, each flush and each shard, never for each input."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import prometheus_client
from prometheus_client import Metric as Family
from prometheus_client.core import GaugeMetricFamily

from contracts.errors import UnavailableError
from contracts.models import ModelSpec
from storage import claims
from storage.database import Database
from storage.plans import Plan
from worker import metrics
from worker.batcher import MicroBatch
from worker.device import Computed
from worker.metrics import Metric, Registry


@dataclass(frozen=True)
class _OfModel:
    """The values of one model, looked up once."""

    real: prometheus_client.Counter
    padded: prometheus_client.Counter
    budget: prometheus_client.Counter
    seconds: prometheus_client.Histogram


class WorkerMetrics:
    """The metrics of one worker process; its methods may be called from any thread."""

    def __init__(self) -> None:
        registry = Registry()
        self.registry = registry.registry
        self._inputs = registry.counter(metrics.INPUTS)
        self._real = registry.counter(metrics.REAL_TOKENS)
        self._padded = registry.counter(metrics.PADDED_TOKENS)
        self._budget = registry.counter(metrics.BUDGET_TOKENS)
        self._seconds = registry.histogram(metrics.PASS_SECONDS, metrics.PASS_BUCKETS)
        self._claims = registry.counter(metrics.CLAIMS)
        self._leases = registry.counter(metrics.LEASES)
        self._rescued = registry.counter(metrics.RESCUED)
        self._slots = registry.gauge(metrics.SLOTS)
        self._held = registry.gauge(metrics.HELD)
        self._model_bytes = registry.gauge(metrics.MODEL_BYTES)
        self._model_limit = registry.gauge(metrics.MODEL_LIMIT)
        self._load_seconds = registry.gauge(metrics.LOAD_SECONDS)
        self._plan = registry.gauge(metrics.MODEL_PLAN)
        self._plans: dict[str, tuple[str, ...]] = {}
        """By model in memory: the labels of its plan."""
        self._loads = registry.counter(metrics.LOADS)
        self._evictions = registry.counter(metrics.EVICTIONS)
        self._of_models: dict[str, _OfModel] = {}
        for outcome in ("claimed", "nothing"):
            self._claims.labels(outcome)
        for outcome in ("closed", "released", "lost", "failed"):
            self._leases.labels(outcome)

    def serves(self, pool: str, slots: int, held: Callable[[], int], model_limit: int, database: Database) -> None:
        """Say what the worker is; the work that waits for its pool is looked up at each scrape from now on."""
        self._slots.labels(pool).set(slots)
        self._held.labels(pool).set_function(held)
        self._model_limit.set(model_limit)
        self.registry.register(_Queue(pool, database))

    def passed(self, model: ModelSpec, batch: MicroBatch, seconds: float) -> None:
        """Note that a micro-batch went through the model."""
        of_model = self._of_models.get(model.reference) or self._look_up(model.reference)
        of_model.real.inc(batch.real_tokens)
        of_model.padded.inc(batch.padded_tokens)
        of_model.budget.inc(batch.budget_tokens)
        of_model.seconds.observe(seconds)

    def dealt_with(self, model: ModelSpec, **outcomes: int) -> None:
        """Note what became of inputs, by outcome."""
        for outcome, count in outcomes.items():
            if count:
                self._inputs.labels(model.task, model.reference, outcome).inc(count)

    def stored(self, computed: Iterable[Computed]) -> None:
        """Note that what a few micro-batches gave is in the database."""
        for part in computed:
            self.dealt_with(part.shard.target.model, computed=len(part.input_ids), failed=len(part.errors))

    def claimed(self, found: bool) -> None:
        """Note what a ticket found."""
        self._claims.labels("claimed" if found else "nothing").inc()

    def lease_ended(self, outcome: str) -> None:
        """Note how a lease ended: `closed`, `released`, `lost` or `failed`."""
        self._leases.labels(outcome).inc()

    def rescued(self, count: int) -> None:
        """Note that leases of dead workers went back to the queue."""
        self._rescued.inc(count)

    def model_loaded(self, model: ModelSpec, memory_bytes: int, plan: Plan) -> None:
        """Note that a model is in memory, computed as its plan says."""
        self._loads.labels(model.reference).inc()
        self._model_bytes.labels(model.reference).set(memory_bytes)
        self._load_seconds.labels(model.reference).set(plan.load_seconds or 0.0)
        self._forget_plan(model)
        labels = model.reference, plan.quantization, plan.dtype, str(plan.lanes), str(plan.threads)
        self._plans[model.reference] = labels
        self._plan.labels(*labels).set(1)

    def model_left(self, model: ModelSpec) -> None:
        """Note that a model left memory for another."""
        self._evictions.labels(model.reference).inc()
        self._model_bytes.remove(model.reference)
        self._load_seconds.remove(model.reference)
        self._forget_plan(model)

    def _forget_plan(self, model: ModelSpec) -> None:
        if labels := self._plans.pop(model.reference, None):
            self._plan.remove(*labels)

    def _look_up(self, reference: str) -> _OfModel:
        found = _OfModel(
            self._real.labels(reference),
            self._padded.labels(reference),
            self._budget.labels(reference),
            self._seconds.labels(reference),
        )
        self._of_models[reference] = found
        return found


class _Queue:
    """What waits for a pool, asked from the database whenever somebody scrapes; absent while it does not answer."""

    def __init__(self, pool: str, database: Database) -> None:
        self._pool = pool
        self._database = database

    def describe(self) -> Sequence[Family]:
        """Nothing is asked when this is registered."""
        return []

    def collect(self) -> Iterator[Family]:
        """The gauges as they are now."""
        try:
            with self._database.transaction() as connection:
                waiting = claims.waiting(connection, self._pool, metrics.COUNTED)
        except UnavailableError:
            return
        yield self._family(metrics.CLAIMABLE, waiting.shards)
        yield self._family(metrics.OLDEST, waiting.oldest_seconds)

    def _family(self, metric: Metric, value: float) -> Family:
        family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        family.add_metric([self._pool], value)
        return family
