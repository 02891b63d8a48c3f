import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from contracts import tracing
from contracts.tracing import Tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What a program gets that has set up OpenTelemetry by itself."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def test_without_opentelemetry_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    traces = Tracing("test")
    with traces.span("shard", {"job": "x"}, parent=PARENT) as span, span.step("prepare"):
        span.past("claim", 1, 2)
        span.event("done")
        span.set("job", "y")
        assert span.traceparent is None
    traces.close()


def test_without_an_endpoint_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    before = threading.active_count()
    with Tracing("test").span("submit", {}) as span:
        assert span.traceparent is None
    assert threading.active_count() == before


def test_spans_continue_the_trace_they_are_handed(exported: InMemorySpanExporter) -> None:
    with Tracing("test").span("shard", {"job": "x", "inputs": 3}, parent=PARENT, began=1_000) as span:
        with span.step("prepare"):
            pass
        span.past("claim", 2_000, 3_000)
        span.event("job succeeded")
        assert span.traceparent is not None
        assert span.traceparent.split("-")[1] == PARENT.split("-")[1]
    prepare, claim, shard = exported.get_finished_spans()
    assert [prepare.name, claim.name, shard.name] == ["prepare", "claim", "shard"]
    assert f"{shard.parent.span_id:x}" == PARENT.split("-")[2]
    assert prepare.parent == claim.parent == shard.context
    assert (shard.start_time, claim.start_time, claim.end_time) == (1_000, 2_000, 3_000)
    assert dict(shard.attributes or {}) == {"batchmill.job": "x", "batchmill.inputs": 3}
    assert [event.name for event in shard.events] == ["job succeeded"]


def test_a_submission_is_below_what_the_caller_is_in(exported: InMemorySpanExporter) -> None:
    traces = Tracing("test")
    caller = trace.get_tracer_provider().get_tracer("caller")
    with caller.start_as_current_span("nightly") as nightly, traces.span("submit", {}) as span:
        traceparent = span.traceparent
    submit, _ = exported.get_finished_spans()
    assert submit.parent == nightly.get_span_context()
    assert traceparent is not None
    assert traceparent.startswith(f"00-{submit.context.trace_id:032x}-{submit.context.span_id:016x}-0")


def test_an_error_is_told_by_its_kind_and_not_by_its_words(exported: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="canary"), Tracing("test").span("shard", {}) as span, span.step("prepare"):
        raise ValueError("canary")
    for span in exported.get_finished_spans():
        assert "canary" not in span.to_json()
    assert span.status.description == "ValueError"


def test_a_collector_that_is_away_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(tracing, "SHUTDOWN_SECONDS", 0.2)
    traces = Tracing("test")
    with traces.span("submit", {}):
        pass
    traces.close()
