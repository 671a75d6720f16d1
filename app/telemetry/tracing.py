"""Traces as the code sees them: spans that may be nothing. Knows no OpenTelemetry; `otel.py` does, loaded only when a
collector is named.

The current span is a context variable, so whoever works within it makes children without being handed a tracer:
`with entered(current_span().child("load prompt")) as span: …`. Facts are names, ids and numbers, never what a user
wrote; of an error its code is kept, not its message.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Literal

from app.errors import TracingUnavailable

Kind = Literal["internal", "server", "producer", "consumer"]
Facts = Mapping[str, str | int | float | bool | Sequence[str]]

NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
"""What the extra `tracing` brings."""

CARRIER = "TRACEPARENT"
"""The environment variable by which a process hands its span to a child process, by OpenTelemetry's convention."""


class Span:
    """A span that is nothing: what there is while nobody traces. Times are seconds on the monotonic clock."""

    recording = False

    @property
    def traceparent(self) -> str | None:
        """This span in W3C's form, for others to continue; None for nothing."""
        return None

    @property
    def trace_id(self) -> str | None:
        """32 hexadecimal digits; None for nothing, and for a trace that is not kept."""
        return None

    def child(
        self, name: str, facts: Facts | None = None, *, kind: Kind = "internal", began: float | None = None
    ) -> Span:
        """A span within this one, from `began` or now on; end it."""
        return self

    def rename(self, name: str) -> None:
        """Call it otherwise: a request's route is known after it began."""

    def set(self, facts: Facts) -> None:
        """Add what is known now."""

    def fail(self, code: str) -> None:
        """Say that it went wrong, and how."""

    def end(self, at: float | None = None) -> None:
        """It ends `at`, or now; whatever is said afterwards is lost."""


class Tracer:
    """Where traces begin in a process. This one keeps none."""

    on = False

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
        """The first span here: part of the trace `traceparent` names where that is valid, else of a new one."""
        return NOTHING

    def close(self) -> None:
        """Send what is left, for some seconds at most."""


NOTHING = Span()
_current: ContextVar[Span] = ContextVar("span", default=NOTHING)


def current_span() -> Span:
    """The span in which this code runs, perhaps nothing."""
    return _current.get()


@contextmanager
def entered(span: Span) -> Iterator[Span]:
    """`span` as the current one until the block ends, and with it the span: by its code, if an error leaves it."""
    if span is NOTHING and _current.get() is NOTHING:
        yield span
        return
    token = _current.set(span)
    try:
        yield span
    except BaseException as error:
        span.fail(code_of(error))
        raise
    finally:
        _current.reset(token)
        span.end()


class Stages:
    """Spans that follow one another within the current one: beginning the next ends the one before."""

    def __init__(self) -> None:
        self._span = NOTHING

    def begin(self, name: str) -> None:
        self._span.end()
        self._span = current_span().child(name)

    def end(self, error: BaseException | None = None) -> None:
        if error is not None:
            self._span.fail(code_of(error))
        self._span.end()
        self._span = NOTHING


def code_of(error: BaseException) -> str:
    """An error's stable code where it has one, else its kind. Never its text, which may quote a user."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    code = getattr(error, "code", None)
    return code if isinstance(code, str) else type(error).__name__


def open_tracer(endpoint: str | None, *, service: str, share: float = 1.0) -> Tracer:
    """A tracer that sends to the OTLP/HTTP collector at `endpoint`, of every trace that begins here the `share` (0 to
    1); one that keeps nothing without an endpoint. Raises TracingUnavailable without the extra `tracing`."""
    if endpoint is None:
        return Tracer()
    check_extra(endpoint)
    from app.telemetry import otel

    return otel.open_exporting(endpoint, service=service, share=share)


def check_extra(endpoint: str | None) -> None:
    """Raise TracingUnavailable for an endpoint that nothing here could send to."""
    if endpoint is not None and not all(map(_is_installed, NEEDED)):
        raise TracingUnavailable(
            "CHORUS_OTLP_ENDPOINT is set, but OpenTelemetry's SDK is not installed: "
            "pip install 'chorus-serve[tracing]', or unset it",
            param="otlp_endpoint",
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def handed_on(environment: Mapping[str, str], span: Span) -> dict[str, str]:
    """`environment` for a child process that continues `span`; without what this process was handed itself."""
    kept = {name: value for name, value in environment.items() if name != CARRIER}
    traceparent = span.traceparent
    return kept if traceparent is None else kept | {CARRIER: traceparent}


def handed_to_us() -> str | None:
    """The span that our parent process handed on."""
    return os.environ.get(CARRIER)
