"""Traces of jobs by OpenTelemetry, from the submission to the last shard; without it, none of this does anything.

Spans are exported when the extra `otel` is installed and `OTEL_EXPORTER_OTLP_ENDPOINT` is set; its other variables
count as well, since OpenTelemetry reads them itself. A program that has set up OpenTelemetry on its own gets the spans
of its submissions there, below those that it is in.
"""

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SHUTDOWN_SECONDS = 3.0
"""What is not exported by then is given up: a collector that is away holds up nobody's end for longer."""

Attributes = Mapping[str, str | int]


class Span:
    """A span that is open; nothing, where there are no traces."""

    def __init__(self, tracer: "Tracer | None" = None, span: "OtelSpan | None" = None) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def traceparent(self) -> str | None:
        """What others continue the trace by, as W3C Trace Context writes it."""
        if self._span is None:
            return None
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(self._span))
        return carrier.get("traceparent")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A child span, for as long as the block takes."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False):
            yield

    def past(self, name: str, began: int, ended: int) -> None:
        """A child span that is over.

        Args:
            name: Its name.
            began: In nanoseconds since the epoch, as `time.time_ns` gives them.
            ended: The same.
        """
        if self._tracer is not None:
            self._tracer.start_span(name, start_time=began).end(ended)

    def set(self, name: str, value: str | int) -> None:
        """An attribute that became known only now."""
        if self._span is not None:
            self._span.set_attribute(f"batchmill.{name}", value)

    def event(self, name: str) -> None:
        """Something that happened at this moment."""
        if self._span is not None:
            self._span.add_event(name)


class Tracing:
    """Where the spans of this process go.

    Args:
        service: What they come from, unless `OTEL_SERVICE_NAME` says.
    """

    def __init__(self, service: str) -> None:
        self._ours: TracerProvider | None = None
        self._tracer: Tracer | None = None
        wanted = any(os.environ.get(name) for name in ENDPOINTS)
        # Whoever set up OpenTelemetry has imported it; nobody else is to wait for it.
        if not wanted and "opentelemetry.trace" not in sys.modules:
            return
        try:
            from opentelemetry import trace
        except ModuleNotFoundError:
            return
        provider = trace.get_tracer_provider()
        if wanted and isinstance(provider, trace.ProxyTracerProvider):
            self._ours = _exporting(service)
        self._tracer = (self._ours or provider).get_tracer("batchmill")

    @contextmanager
    def span(
        self, name: str, attributes: Attributes, *, parent: str | None = None, began: int | None = None
    ) -> Iterator[Span]:
        """A span, for as long as the block takes.

        Args:
            name: Its name.
            attributes: Stand under `batchmill.…`.
            parent: The traceparent to continue; the span that this thread is in when there is none.
            began: When it began, in nanoseconds since the epoch; now when not given.
        """
        if self._tracer is None:
            yield Span()
            return
        from opentelemetry.trace import StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        with self._tracer.start_as_current_span(
            name,
            context=None if parent is None else TraceContextTextMapPropagator().extract({"traceparent": parent}),
            attributes={f"batchmill.{key}": value for key, value in attributes.items()},
            start_time=began,
            # Their messages may quote inputs.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield Span(self._tracer, span)
            except BaseException as error:
                span.set_status(StatusCode.ERROR, type(error).__name__)
                raise

    def close(self) -> None:
        """Export what was not exported yet, and end."""
        if self._ours is not None:
            closing = threading.Thread(target=self._ours.shutdown, daemon=True)
            closing.start()
            closing.join(SHUTDOWN_SECONDS)


def _exporting(service: str) -> "TracerProvider | None":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        return None
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
