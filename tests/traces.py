"""Spans to look at: kept in memory, or received by a small OTLP collector from processes that send them."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.telemetry.otel import KeepingTracer, make_provider

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"
"""What a caller gives who has begun a trace."""


@dataclass(frozen=True)
class Seen:
    """A span as a collector sees it; ids in hexadecimal, times in nanoseconds, `parent` empty for the first."""

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    began: int
    ended: int
    failed: bool
    facts: dict[str, Any] = field(hash=False)
    service: str = ""


class Kept(KeepingTracer):
    """A tracer whose spans can be read as soon as they have ended."""

    def __init__(self, share: float = 1.0) -> None:
        self._memory = InMemorySpanExporter()
        provider = make_provider("test", share)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        super().__init__(provider)

    @property
    def spans(self) -> list[Seen]:
        return [_seen(one) for one in self._memory.get_finished_spans()]

    def clear(self) -> None:
        self._memory.clear()

    @property
    def text(self) -> str:
        """All that the spans say, for a search of what they must not say."""
        return json.dumps([json.loads(one.to_json()) for one in self._memory.get_finished_spans()])


def named(spans: Sequence[Seen], name: str) -> Seen:
    """The only span of that name."""
    found = [one for one in spans if one.name == name]
    assert len(found) == 1, (name, [one.name for one in spans])
    return found[0]


class Collector:
    """What processes have sent so far."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.url = ""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port of this machine until the block ends."""
    collector = Collector()

    class Receive(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") != "gzip" and self.path == "/v1/traces":
                collector.spans += _received(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receive)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _seen(span: ReadableSpan) -> Seen:
    context = span.get_span_context()
    assert context is not None
    return Seen(
        span.name,
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        "" if span.parent is None else f"{span.parent.span_id:016x}",
        span.kind.name,
        span.start_time or 0,
        span.end_time or 0,
        span.status.status_code.name == "ERROR",
        dict(span.attributes or {}),
    )


def _received(body: bytes) -> list[Seen]:
    request = ExportTraceServiceRequest.FromString(body)
    found = []
    for resource in request.resource_spans:
        about = {one.key: one.value.string_value for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                facts = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
                found.append(
                    Seen(
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        span.status.code == span.status.STATUS_CODE_ERROR,
                        facts,
                        about["service.name"],
                    )
                )
    return found
