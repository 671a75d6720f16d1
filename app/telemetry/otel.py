"""Spans kept by OpenTelemetry's SDK and sent to a collector by OTLP over HTTP. Imported only when one is named.

The provider is ours alone and never the process's global one: no library that knows OpenTelemetry adds spans of its
own, which could hold what users wrote.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import Tracer as OtelTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app import __version__
from app.telemetry.tracing import NOTHING, Facts, Kind, Span, Tracer

EXPORT_S = 5.0
"""How long one attempt to send may take, and how long an end waits for the last."""

MOST_SPANS = 512
"""Of one process for one request: a request of a thousand rows must not push all others out of the queue."""

MOST_STATE = 512
"""Characters of `tracestate` that are passed on, as the recommendation asks of everybody."""

_KINDS: Mapping[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_PROPAGATOR = TraceContextTextMapPropagator()

log = logging.getLogger(__name__)


class _Room:
    """How many more spans a trace may have here, and how many it was refused."""

    def __init__(self) -> None:
        self.left, self.refused = MOST_SPANS, 0


class KeptSpan(Span):
    """A span of OpenTelemetry. Spans of one request share `room`."""

    def __init__(self, tracer: OtelTracer, span: OtelSpan, room: _Room, *, first: bool = False) -> None:
        self._tracer, self._span, self._room, self._first = tracer, span, room, first
        self.recording = span.is_recording()

    @property
    def traceparent(self) -> str | None:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(self._span, Context()))
        return carrier.get("traceparent")

    @property
    def trace_id(self) -> str | None:
        return f"{self._span.get_span_context().trace_id:032x}" if self.recording else None

    def child(
        self, name: str, facts: Facts | None = None, *, kind: Kind = "internal", began: float | None = None
    ) -> Span:
        if self._room.left <= 0:
            self._room.refused += 1
            return NOTHING
        self._room.left -= 1
        context = set_span_in_context(self._span, Context())
        made = self._tracer.start_span(name, context, _KINDS[kind], facts, start_time=_wall_ns(began))
        return KeptSpan(self._tracer, made, self._room)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, facts: Facts) -> None:
        self._span.set_attributes(facts)

    def fail(self, code: str) -> None:
        self._span.set_attribute("error.type", code)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self, at: float | None = None) -> None:
        if self._first and self._room.refused:
            self._span.set_attribute("chorus.spans_left_out", self._room.refused)
        self._span.end(_wall_ns(at))


class KeepingTracer(Tracer):
    """Begins traces in a provider of its own."""

    on = True

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("chorus", __version__)

    def begin(
        self,
        name: str,
        facts: Facts | None = None,
        *,
        kind: Kind = "internal",
        traceparent: str | None = None,
        tracestate: str | None = None,
        began: float | None = None,
    ) -> Span:
        context = _given(traceparent, tracestate)
        made = self._tracer.start_span(name, context, _KINDS[kind], facts, start_time=_wall_ns(began))
        return KeptSpan(self._tracer, made, _Room(), first=True)

    def close(self) -> None:
        """The SDK waits for half a minute where a collector hangs; a process that ends has no such time."""
        sending = threading.Thread(target=self._shut_down, name="last spans", daemon=True)
        sending.start()
        sending.join(EXPORT_S)

    def _shut_down(self) -> None:
        with suppress(Exception):  # what could not be sent is lost; that must not look like a failure
            self._provider.shutdown()


def open_exporting(endpoint: str, *, service: str, share: float) -> KeepingTracer:
    """Sends in the background, and drops rather than waits. Headers for the collector are read by the exporter itself
    from OTEL_EXPORTER_OTLP_HEADERS."""
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    provider = make_provider(service, share)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=8192, schedule_delay_millis=1000))
    log.info("tracing", extra={"service": service, "share": share})
    return KeepingTracer(provider)


def make_provider(service: str, share: float = 1.0) -> TracerProvider:
    """A provider without processors. A caller's own choice to keep a trace, or not to, is followed."""
    resource = Resource(
        {
            "service.name": service,
            "service.version": __version__,
            "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
        }
    )
    return TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(share)), shutdown_on_exit=False)


def _given(traceparent: str | None, tracestate: str | None) -> Context:
    """The trace that somebody else began, if they name it as W3C's recommendation says; else none."""
    carrier = {} if traceparent is None else {"traceparent": traceparent}
    if tracestate is not None and len(tracestate) <= MOST_STATE:
        carrier["tracestate"] = tracestate
    return _PROPAGATOR.extract(carrier, Context())


def _wall_ns(at: float | None) -> int | None:
    """Nanoseconds since 1970 of a moment on the monotonic clock."""
    return None if at is None else time.time_ns() - int((time.monotonic() - at) * 1e9)
