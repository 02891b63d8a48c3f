"""Every metric that batchmill exports, and the registry of one process that holds their values.

`METRICS` is the table: names, labels and help. Importing it registers nothing and needs none of the libraries that run
models. Labels name what an operator made (models, tasks, pools), and never a job, a shard or an input.
"""

from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector


class Kind(StrEnum):
    """What Prometheus may do with the values."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Program(StrEnum):
    """Who exports it."""

    WORKER = "worker"
    DELIVERER = "deliverer"


@dataclass(frozen=True)
class Metric:
    """One line of the table."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    program: Program = Program.WORKER


# A pass of a small encoder takes milliseconds, one of a generator on a CPU minutes.
PASS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
COUNTED = 10_000
"""Claimable shards are counted up to so many: what a scrape costs does not grow with what waits."""

INPUTS = Metric(
    "batchmill_inputs_total",
    Kind.COUNTER,
    "Distinct inputs of claimed shards by what became of them: `computed` and stored, `failed` with an error of their "
    "own, `cached` (found computed at the claim), `followed` (another shard of this process computes them).",
    ("task", "model", "outcome"),
)
REAL_TOKENS = Metric(
    "batchmill_real_tokens_total", Kind.COUNTER, "Tokens that went through a model, without padding.", ("model",)
)
PADDED_TOKENS = Metric(
    "batchmill_padded_tokens_total",
    Kind.COUNTER,
    "Tokens with padding: the longest row of each micro-batch, times its rows. Waste is 1 - real / padded.",
    ("model",),
)
BUDGET_TOKENS = Metric(
    "batchmill_budget_tokens_total",
    Kind.COUNTER,
    "Padded tokens that the micro-batches had room for. Fill is padded / budget.",
    ("model",),
)
PASS_SECONDS = Metric(
    "batchmill_pass_duration_seconds",
    Kind.HISTOGRAM,
    "What a micro-batch took on the device; its count is the number of micro-batches.",
    ("model",),
)
CLAIMS = Metric(
    "batchmill_claims_total",
    Kind.COUNTER,
    "Tickets by what they found: a shard was `claimed`, or `nothing`.",
    ("outcome",),
)
LEASES = Metric(
    "batchmill_leases_total",
    Kind.COUNTER,
    "Leases of this worker by how they ended: `closed`, `released` (given back unfinished), `lost` (taken away, as the "
    "job ended or the lease ran out), `failed` (the job cannot run).",
    ("outcome",),
)
RESCUED = Metric(
    "batchmill_rescued_shards_total",
    Kind.COUNTER,
    "Shards whose lease ran out, in whichever worker, and that this one's tick sent back to the queue.",
)
SLOTS = Metric("batchmill_slots", Kind.GAUGE, "Shards that this worker holds at most.", ("pool",))
HELD = Metric("batchmill_held_shards", Kind.GAUGE, "Shards that this worker holds now.", ("pool",))
MODEL_BYTES = Metric(
    "batchmill_model_memory_bytes", Kind.GAUGE, "Memory that the weights of a model in memory take.", ("model",)
)
MODEL_LIMIT = Metric("batchmill_model_memory_limit_bytes", Kind.GAUGE, "Memory that all models may take together.")
LOAD_SECONDS = Metric(
    "batchmill_model_load_seconds",
    Kind.GAUGE,
    "What it took to load a model that is in memory, once its files were on the host.",
    ("model",),
)
MODEL_PLAN = Metric(
    "batchmill_model_plan",
    Kind.GAUGE,
    "1 for a model that is in memory, with how its weights are held and it is computed: the arithmetic, passes beside "
    "one another, and threads of a pass.",
    ("model", "quantization", "dtype", "lanes", "threads"),
)
LOADS = Metric("batchmill_model_loads_total", Kind.COUNTER, "How often a model was loaded.", ("model",))
EVICTIONS = Metric(
    "batchmill_model_evictions_total", Kind.COUNTER, "How often a model left memory for another.", ("model",)
)
CLAIMABLE = Metric(
    "batchmill_claimable_shards",
    Kind.GAUGE,
    f"Shards of the worker's pool that could be claimed now, counted up to {COUNTED:,}. Every worker of a pool says "
    "the same: take the max, not the sum.",
    ("pool",),
)
OLDEST = Metric(
    "batchmill_oldest_waiting_seconds",
    Kind.GAUGE,
    "How long the job of the worker's pool has waited that was not served for longest, of those with a claimable "
    "shard; 0 when there is none.",
    ("pool",),
)
DELIVERIES = Metric(
    "batchmill_webhook_attempts_total",
    Kind.COUNTER,
    "Attempts at webhooks by what came of them: `delivered`, `pending` (failed, to be tried again) or `dead`.",
    ("outcome",),
    Program.DELIVERER,
)

METRICS = (
    *(INPUTS, REAL_TOKENS, PADDED_TOKENS, BUDGET_TOKENS, PASS_SECONDS),
    *(CLAIMS, LEASES, RESCUED, SLOTS, HELD),
    *(MODEL_BYTES, MODEL_LIMIT, MODEL_PLAN, LOAD_SECONDS, LOADS, EVICTIONS),
    *(CLAIMABLE, OLDEST),
    DELIVERIES,
)
"""All of them. Beside these, each process exports what `prometheus_client.ProcessCollector` knows of it."""


class Registry:
    """The values of one process: nothing is shared with other registries, nor with the library's own default."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

    def counter(self, metric: Metric) -> Counter:
        """A counter of the table, with no value yet where it has labels."""
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)

    def gauge(self, metric: Metric) -> Gauge:
        """A gauge of the table."""
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)

    def histogram(self, metric: Metric, buckets: tuple[float, ...]) -> Histogram:
        """A histogram of the table."""
        return Histogram(metric.name, metric.help, metric.labels, registry=self.registry, buckets=buckets)
