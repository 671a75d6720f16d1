"""Spans as code makes them: continued only from what is valid, never holding a text, and nothing at all when off."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from opentelemetry import trace

from app.errors import InvalidRequest
from app.telemetry import configure_logging, otel
from app.telemetry.tracing import (
    CARRIER,
    NOTHING,
    Stages,
    Tracer,
    code_of,
    current_span,
    entered,
    handed_on,
    open_tracer,
)
from tests.traces import GIVEN, SPAN, TRACE, Kept, named
from tests.whole import clean_environment


def test_span_continues_the_trace_it_is_given() -> None:
    tracer = Kept()
    span = tracer.begin("GET", traceparent=GIVEN, tracestate="vendor=1")
    span.child("inner").end()
    span.end()
    outer, inner = named(tracer.spans, "GET"), named(tracer.spans, "inner")
    assert (outer.trace, outer.parent) == (TRACE, SPAN)
    assert (inner.trace, inner.parent) == (TRACE, outer.id)
    assert span.traceparent == f"00-{TRACE}-{outer.id}-01"


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "x",
        GIVEN.upper(),
        GIVEN + "-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        GIVEN + "\r\nx: y",
        "é" * 55,
        "0" * 600,
    ],
    ids=ascii,
)
def test_span_begins_a_trace_of_its_own_where_none_is_named_validly(given: str | None) -> None:
    tracer = Kept()
    span = tracer.begin("GET", traceparent=given)
    span.end()
    (seen,) = tracer.spans
    assert seen.parent == ""
    assert seen.trace != TRACE
    assert (span.traceparent or "")[:-2] == f"00-{seen.trace}-{seen.id}-"


def test_caller_who_keeps_no_trace_is_followed() -> None:
    tracer = Kept()
    span = tracer.begin("GET", traceparent=f"00-{TRACE}-{SPAN}-00")
    with entered(span):
        current_span().child("inner").end()
    assert tracer.spans == []
    assert span.trace_id is None
    assert (span.traceparent or "").startswith(f"00-{TRACE}-")
    assert (span.traceparent or "").endswith("-00")


def test_share_of_nothing_keeps_no_trace_begun_here() -> None:
    tracer = Kept(share=0.0)
    tracer.begin("GET").end()
    tracer.begin("POST", traceparent=GIVEN).end()
    assert [one.name for one in tracer.spans] == ["POST"]


def test_span_ended_by_an_error_says_its_code_and_not_its_text() -> None:
    tracer = Kept()
    with pytest.raises(InvalidRequest), entered(tracer.begin("GET")), entered(current_span().child("inner")):
        raise InvalidRequest("the label 'my secret' is unknown")
    assert [(one.facts["error.type"], one.failed) for one in tracer.spans] == [("invalid_request", True)] * 2
    assert "secret" not in tracer.text


def test_error_without_a_code_is_told_by_its_kind() -> None:
    assert code_of(ValueError("secret")) == "ValueError"
    assert code_of(asyncio.CancelledError()) == "cancelled"


def test_times_on_the_monotonic_clock_become_times_of_day() -> None:
    tracer = Kept()
    now, wall = time.monotonic(), time.time_ns()
    span = tracer.begin("a", began=now - 3)
    span.end(now - 1)
    (seen,) = tracer.spans
    assert seen.ended - seen.began == pytest.approx(2e9, abs=1e8)
    assert seen.began == pytest.approx(wall - 3e9, abs=1e9)


def test_request_of_very_many_rows_has_a_bounded_number_of_spans() -> None:
    tracer = Kept()
    with entered(tracer.begin("POST")):
        for _ in range(otel.MOST_SPANS + 100):
            with entered(current_span().child("row")):
                current_span().child("queue").end()
    assert len(tracer.spans) == otel.MOST_SPANS + 1
    assert named(tracer.spans, "POST").facts["chorus.spans_left_out"] > 0


def test_stages_follow_one_another_and_the_last_bears_the_error() -> None:
    tracer, stages = Kept(), Stages()
    with entered(tracer.begin("job")):
        stages.begin("train")
        stages.begin("evaluate")
        stages.end(InvalidRequest("secret"))
    train, evaluate, job = tracer.spans
    assert [one.name for one in (train, evaluate, job)] == ["train", "evaluate", "job"]
    assert train.parent == evaluate.parent == job.id
    assert (train.failed, evaluate.failed, evaluate.facts["error.type"]) == (False, True, "invalid_request")


def test_nothing_is_kept_or_handed_on_while_nobody_traces() -> None:
    tracer = open_tracer(None, service="test")
    assert not tracer.on
    with entered(tracer.begin("GET", traceparent=GIVEN)) as span, entered(span.child("inner")) as inner:
        assert span is inner is current_span() is NOTHING
        assert (inner.traceparent, inner.trace_id, inner.recording) == (None, None, False)
    tracer.close()


def trace_a_row(tracer: Tracer) -> None:
    """The spans of a request of one row."""
    with entered(tracer.begin("POST", kind="server")) as span:
        with entered(span.child("registry lookup")):
            pass
        row = span.child("text_completion mood", {"gen_ai.request.model": "mood"})
        for name in ("queue", "prefill", "decode"):
            row.child(name).end()
        row.end()
        span.set({"http.route": "/v1/generate", "http.response.status_code": 200})


@pytest.mark.parametrize(("endpoint", "most_s"), [(None, 50e-6), ("http://127.0.0.1:9", 1e-3)])
def test_spans_of_a_request_cost_little_and_next_to_nothing_when_off(endpoint: str | None, most_s: float) -> None:
    tracer = open_tracer(endpoint, service="test")
    costs = []
    for _ in range(200):
        began = time.thread_time()
        trace_a_row(tracer)
        costs.append(time.thread_time() - began)
    assert sorted(costs)[100] < most_s
    tracer.close()


def test_child_process_is_handed_this_span_and_never_a_strangers() -> None:
    span = Kept().begin("process")
    inherited = {CARRIER: GIVEN, "PATH": "/bin"}
    assert handed_on(inherited, span) == {"PATH": "/bin", CARRIER: span.traceparent}
    assert handed_on(inherited, NOTHING) == {"PATH": "/bin"}
    span.end()


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_log_line_names_its_trace(lines: io.StringIO) -> None:
    with entered(Kept().begin("GET", traceparent=GIVEN)):
        logging.getLogger("app.x").info("said")
    logging.getLogger("app.x").info("later")
    first, second = map(json.loads, lines.getvalue().splitlines())
    assert first["trace_id"] == TRACE
    assert "trace_id" not in second


def test_spans_of_other_libraries_are_not_kept() -> None:
    tracer = otel.open_exporting("http://127.0.0.1:9", service="test", share=1.0)
    assert "opentelemetry.sdk" not in type(trace.get_tracer_provider()).__module__
    tracer.close()


def test_collector_that_hangs_delays_the_end_by_no_more_than_the_time_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "EXPORT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        tracer = otel.open_exporting(f"http://127.0.0.1:{deaf.getsockname()[1]}", service="test", share=1.0)
        tracer.begin("GET").end()
        began = time.monotonic()
        tracer.close()
        assert time.monotonic() - began < 2.0


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "google.protobuf")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def run_without_the_extra(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code],
        env=clean_environment(**settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_stock_install_serves_without_the_extra() -> None:
    code = """
import tempfile, pathlib
from app.main import create_app
from app.settings import Settings
import app.training.worker, app.training.run
app = create_app(Settings(data_dir=pathlib.Path(tempfile.mkdtemp())))
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
assert "app.telemetry.otel" not in sys.modules
print("served")
"""
    ended = run_without_the_extra(code)
    assert ended.stdout == "served\n", ended.stderr


@pytest.mark.parametrize("command", ["serve", "worker", "up"])
def test_collector_without_the_extra_is_refused_at_the_start_with_the_remedy(command: str, tmp_path: object) -> None:
    code = f"from app.cli.run import run\nraise SystemExit(run([{command!r}, '--data-dir', {str(tmp_path)!r}]))"
    settings = {"CHORUS_OTLP_ENDPOINT": "http://127.0.0.1:4318", "CHORUS_REDIS_URL": "redis://127.0.0.1:1/0"}
    ended = run_without_the_extra(code, **settings)
    assert ended.returncode == 2, ended.stderr
    assert "pip install 'chorus-serve[tracing]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_tracer_that_keeps_nothing_is_the_default() -> None:
    assert isinstance(open_tracer(None, service="x"), Tracer)
    assert "otel" not in type(open_tracer(None, service="x")).__module__
