"""A worker seen from outside: its metrics, its probes, its lines and the trace of a job, all of one run."""

import json
import re
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from producer.job import Job
from tests.conftest import Mill, wait_until

TEXTS = [f"canary text {n}" + " and more" * (n % 7) for n in range(400)]
MODEL = "fake:?fail=text 17"


class Collector:
    """Takes what OpenTelemetry exports."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.raw.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def spans(self, name: str | None = None) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(raw) for raw in list(self.raw)]
        scopes = [scope for r in requests for resource in r.resource_spans for scope in resource.scope_spans]
        return [span for scope in scopes for span in scope.spans if name in (None, span.name)]


class Seen:
    """One job on one worker, with everything switched on."""

    def __init__(self, mill: Mill, worker: "subprocess.Popen[bytes]", job: Job, collector: Collector) -> None:
        self.mill = mill
        self.worker = worker
        self.job = job
        self.collector = collector

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.mill.log(self.worker).splitlines()]

    @cached_property
    def address(self) -> str:
        [address] = {m[0] for line in self.lines if (m := re.search(r"http://[\d.:]+", line["event"]))}
        return address

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.address + path, timeout=300) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def samples(self) -> dict[tuple[str, ...], float]:
        status, text = self.get("/metrics")
        assert status == 200
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, make_database: Any, make_broker: Any) -> Iterator[Seen]:
    collector = Collector()
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    mill = Mill(tmp_path_factory.mktemp("mill"), make_database(), make_broker())
    mill.environment |= {
        **traced,
        "BATCHMILL_LOG_FORMAT": "json",
        "BATCHMILL_LOG_LEVEL": "debug",
        "BATCHMILL_METRICS_PORT": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in traced.items():
            patch.setenv(name, value)
        patch.setattr("producer.submission.SHARD_TOKENS", 512)
        patch.setattr("storage.sealing.SMALLEST_SHARD", 512)
        try:
            worker = mill.worker()
            with mill.client() as client:
                client.models.add("model", MODEL, task="embed")
                job = client.submit("model", TEXTS).wait(timeout=300)
                yield Seen(mill, worker, job, collector)
        finally:
            mill.close()
            collector.server.shutdown()
            collector.server.server_close()


def test_metrics_agree_with_the_job(seen: Seen) -> None:
    wait_until(lambda: seen.samples()["batchmill_held_shards", "default"] == 0)
    samples, counts, stats = seen.samples(), seen.job.counts, seen.job.info.stats
    assert (counts.computed, counts.failed) == (389, 11)
    assert samples["batchmill_inputs_total", "model@1", "computed", "embed"] == counts.computed
    assert samples["batchmill_inputs_total", "model@1", "failed", "embed"] == counts.failed
    closed = samples["batchmill_leases_total", "closed"]
    assert closed == samples["batchmill_claims_total", "claimed"] > 3
    real, padded, budget = (
        samples[f"batchmill_{kind}_tokens_total", "model@1"] for kind in ("real", "padded", "budget")
    )
    assert 0 < real <= padded <= budget
    # The job's shares of micro-batches are rounded, shard by shard.
    assert real == pytest.approx(stats.real_tokens, abs=100)
    assert samples["batchmill_pass_duration_seconds_count", "model@1"] == pytest.approx(stats.micro_batches)
    assert samples["batchmill_model_loads_total", "model@1"] == 1
    assert ("batchmill_model_memory_bytes", "model@1") in samples
    assert (
        samples["batchmill_claimable_shards", "default"] == samples["batchmill_oldest_waiting_seconds", "default"] == 0
    )
    assert samples["process_resident_memory_bytes",] > 0


def test_probes_say_that_it_works(seen: Seen) -> None:
    status, body = seen.get("/healthz")
    said = json.loads(body)
    assert (status, said["ok"], said["stage"], said["dead_threads"]) == (200, True, "working", [])
    assert said["last_tick_seconds"] < 60
    status, body = seen.get("/readyz")
    assert (status, json.loads(body)) == (200, {"ok": True, "stage": "working", "trouble": None})
    assert seen.get("/secrets")[0] == 404


def test_each_line_is_json_and_names_what_it_is_about(seen: Seen) -> None:
    lines = seen.lines
    assert {line["worker"] for line in lines} == {lines[0]["worker"]}
    assert lines[0]["worker"].endswith(f":{seen.worker.pid}")
    [done] = [line for line in lines if line["event"].endswith("succeeded")]
    assert done["job"] == str(seen.job.id)
    assert re.fullmatch(r"[0-9a-f-]{36}", done["shard"])
    assert (done["level"], done["logger"]) == ("info", "worker.process")
    [failing, *_] = [line for line in lines if "fail alone" in line["event"]]
    assert failing["model"] == "model@1"
    assert failing["job"] == str(seen.job.id)


def test_a_job_is_one_trace_from_its_submission_to_its_last_shard(seen: Seen) -> None:
    collector = seen.collector
    closed = seen.samples()["batchmill_leases_total", "closed"]
    wait_until(lambda: len(collector.spans("shard")) == closed)
    [submit] = collector.spans("submit")
    shards = collector.spans("shard")
    assert {span.trace_id for span in collector.spans()} == {submit.trace_id}
    assert {span.parent_span_id for span in shards} == {submit.span_id}
    steps = {span.name for span in collector.spans() if span.parent_span_id == shards[-1].span_id}
    assert steps >= {"claim", "prepare", "compute", "persist", "close"}
    assert sum(len(span.events) for span in shards) == 1
    attributes = {item.key: item.value.string_value or item.value.int_value for item in shards[0].attributes}
    assert attributes["batchmill.job"] == str(seen.job.id)
    assert {attributes[f"batchmill.{name}"] for name in ("model", "pool", "attempt")} == {"model@1", "default", 1}
    inputs = [item.value.int_value for span in shards for item in span.attributes if item.key == "batchmill.inputs"]
    assert sum(inputs) == len(TEXTS)


def test_no_input_is_told_to_anyone(seen: Seen) -> None:
    told = seen.mill.log(seen.worker) + seen.get("/metrics")[1] + repr(seen.collector.raw)
    assert "canary" not in told


def test_a_port_that_is_taken_ends_the_worker_at_once(mill: Mill) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        home = mill.folder / "worker"
        home.mkdir()
        worker = mill._start("worker", home, BATCHMILL_METRICS_PORT=port)
        assert worker.wait(60) == 1
    [line] = mill.log(worker).splitlines()
    assert f"configuration: BATCHMILL_METRICS_PORT={port}: cannot listen on 127.0.0.1: Address already in use" in line


def test_a_worker_that_left_answers_nobody(seen: Seen) -> None:
    assert seen.get("/readyz")[0] == 200
    seen.worker.send_signal(signal.SIGTERM)
    assert seen.worker.wait(30) == 0
    with pytest.raises(urllib.error.URLError):
        seen.get("/readyz")
