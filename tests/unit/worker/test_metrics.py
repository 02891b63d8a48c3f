import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import yaml

from contracts.errors import DatabaseUnavailable
from storage.plans import Plan
from tests.engines import RowEngine, hold
from tests.models import model_spec
from worker.batcher import MicroBatch
from worker.device import Computed
from worker.metrics import CLAIMABLE, METRICS, OLDEST, Kind, Program
from worker.observing import WorkerMetrics

DEPLOY = Path(__file__).parents[3] / "deploy"


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


def value(metrics: WorkerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_names_follow_the_conventions() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"batchmill(_[a-z]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.help.endswith(".")
        assert not {"job", "shard", "input", "worker"} & set(metric.labels)


def test_the_table_needs_no_torch_and_registers_nothing() -> None:
    script = """
import sys
import prometheus_client
before = set(prometheus_client.REGISTRY._names_to_collectors)
from worker.metrics import Registry
Registry()
assert set(prometheus_client.REGISTRY._names_to_collectors) == before
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_a_worker_exports_what_the_table_says_of_it(metrics: WorkerMetrics) -> None:
    exported = {(family.name, family.documentation) for family in metrics.registry.collect()}
    asked = {CLAIMABLE, OLDEST}  # of a database, which there is none of here
    promised = {m for m in METRICS if m.program is Program.WORKER and m not in asked}
    ours = {(name, text) for name, text in exported if name.startswith("batchmill")}
    assert ours == {(metric.name.removesuffix("_total"), metric.help) for metric in promised}
    assert "process_resident_memory_bytes" in {name for name, _ in exported}


def test_what_waits_is_left_out_while_the_database_is_away(metrics: WorkerMetrics) -> None:
    class Away:
        @contextmanager
        def transaction(self) -> Iterator[NoReturn]:
            raise DatabaseUnavailable("away")
            yield

    metrics.serves("default", 4, lambda: 3, 1000, Away())
    names = {family.name for family in metrics.registry.collect()}
    assert CLAIMABLE.name not in names
    assert value(metrics, "batchmill_held_shards", pool="default") == 3


def test_fill_and_waste_follow_from_three_sums(metrics: WorkerMetrics) -> None:
    batch = MicroBatch("target", [], real_tokens=60, padded_tokens=80, budget_tokens=100)
    for _ in range(2):
        metrics.passed(model_spec(), batch, 0.03)
    sums = [value(metrics, f"batchmill_{kind}_tokens_total", model="small@1") for kind in ("real", "padded", "budget")]
    assert sums == [120, 160, 200]
    assert value(metrics, "batchmill_pass_duration_seconds_count", model="small@1") == 2
    assert value(metrics, "batchmill_pass_duration_seconds_bucket", model="small@1", le="0.025") == 0
    assert value(metrics, "batchmill_pass_duration_seconds_bucket", model="small@1", le="0.05") == 2


def test_inputs_are_counted_by_what_became_of_them(metrics: WorkerMetrics) -> None:
    shard = hold(RowEngine(), [1, 2, 3])
    part = Computed(shard, np.arange(3), np.array([1, 3]), np.zeros(2, np.bool_), None, {2: ValueError()}, True)
    metrics.stored([part, part])
    metrics.dealt_with(shard.target.model, cached=5, failed=0, followed=7)
    counts = {
        outcome: value(metrics, "batchmill_inputs_total", task="embed", model="small@1", outcome=outcome)
        for outcome in ("computed", "failed", "cached", "followed")
    }
    assert counts == {"computed": 4, "failed": 2, "cached": 5, "followed": 7}


def test_a_model_that_left_takes_no_memory(metrics: WorkerMetrics) -> None:
    plan = Plan(1024, 1.0, load_seconds=1.5, quantization="nf4", dtype="float32", lanes=2, threads=1)
    metrics.model_loaded(model_spec(), 1000, plan)
    labels = {"model": "small@1", "quantization": "nf4", "dtype": "float32", "lanes": "2", "threads": "1"}
    assert value(metrics, "batchmill_model_plan", **labels) == 1
    assert value(metrics, "batchmill_model_memory_bytes", model="small@1") == 1000
    assert value(metrics, "batchmill_model_load_seconds", model="small@1") == 1.5
    metrics.model_left(model_spec())
    assert value(metrics, "batchmill_model_plan", **labels) is None
    assert value(metrics, "batchmill_model_memory_bytes", model="small@1") is None
    assert value(metrics, "batchmill_model_evictions_total", model="small@1") == 1


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEPLOY / "grafana" / "batchmill.json").read_text())
    return content


def test_the_dashboard_shows_metrics_that_exist_by_labels_that_they_have(dashboard: dict[str, Any]) -> None:
    exported = {name: metric for metric in METRICS for name in samples_of(metric.name, metric.kind)}
    expressions = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    shown = set()
    for expression in expressions:
        names = set(re.findall(r"\b(?:batchmill|process)_[a-z_]+", expression))
        assert names, expression
        ours = {name for name in names if name.startswith("batchmill")}
        assert ours <= exported.keys()
        shown |= {exported[name].name for name in ours}
        # Prometheus adds `instance` and `job`, a histogram `le`.
        labels = {label for name in ours for label in exported[name].labels} | {"instance", "job", "le"}
        for names_in in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in names_in.split(",")} <= labels, expression
        assert set(re.findall(r"(\w+)\s*=~?\s*\"", expression)) <= labels, expression
    assert shown == {metric.name for metric in METRICS}, "each metric is on the dashboard"


def samples_of(name: str, kind: Kind) -> list[str]:
    return [f"{name}_{part}" for part in ("bucket", "count", "sum")] if kind is Kind.HISTOGRAM else [name]


def test_panels_stand_beside_one_another(dashboard: dict[str, Any]) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in dashboard["panels"]]
    for title, place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24, title
    for (one, a), (other, b) in combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart or above, f"{one} and {other}"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_prometheus_scrapes_what_exports(dashboard: dict[str, Any]) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert {scrape["job_name"] for scrape in config["scrape_configs"]} == {"batchmill-worker", "batchmill-deliverer"}
