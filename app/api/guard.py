"""The guard in front of the application, as plain ASGI: every request passes it, every answer carries its marks.

In order: request id, head, drain, key, limits, body; then the application; then one log line, the audit log and the
metrics. Whatever is raised anywhere inside becomes the one error shape, or ends the connection if the answer has
already begun.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.auth import OPEN_PATHS, Access, Account, Gatekeeper, Need, account, route_of
from app.api.body import EdgeLimits, check_head, read_body, replay
from app.api.connections import ABORT, SPARE
from app.api.drain import Drain
from app.api.errors import error_response, status_of
from app.api.faults import TooManyConnections
from app.errors import CutOff, Overloaded
from app.settings import Settings
from app.telemetry import Metrics, request_id
from app.telemetry.ids import new_id
from app.telemetry.tracing import NOTHING, Facts, Span, Tracer, entered

log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_QUIET = OPEN_PATHS | {"/metrics", "/health"}
_UNMATCHED = "(unmatched)"
UPLOADS = (("PUT", re.compile(r"/v1/datasets/")), ("POST", re.compile(r"/v1/tasks/[^/]+/versions\Z")))
"""Calls whose bodies are data: rows and prompts."""


class Guard:
    """ASGI middleware; one for each application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        access: Access,
        drain: Drain,
        metrics: Metrics,
        limits: EdgeLimits,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._tracer = tracer or Tracer()
        self._settings = settings
        self._drain = drain
        self._metrics = metrics
        self._limits = limits
        self._access = access
        self._gatekeeper = Gatekeeper(settings, access.directory)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        exchange = Exchange(scope, send, _request_id(headers), self._limits, self._trace(scope, headers), self._drain)
        token = request_id.set(exchange.request_id)
        counted = scope["path"] not in OPEN_PATHS
        with entered(exchange.span):
            try:
                with self._drain.count() if counted else nullcontext(), self._metrics.http_in_flight.track_inprogress():
                    await self._run(exchange, receive, headers)
            finally:
                request_id.reset(token)
                await self._settle(exchange)
                self._record(exchange)

    def _trace(self, scope: Scope, headers: Headers) -> Span:
        """The request's span, in the trace its caller names. Neither path nor query are told: users write them."""
        if not self._tracer.on or scope["path"] in _QUIET:
            return NOTHING
        given = headers.getlist("traceparent")
        return self._tracer.begin(
            _method(scope),
            {"http.request.method": _method(scope)},
            kind="server",
            traceparent=given[0] if len(given) == 1 else None,
            tracestate=",".join(headers.getlist("tracestate")) or None,
        )

    async def _run(self, exchange: Exchange, receive: Receive, headers: Headers) -> None:
        scope = exchange.scope
        try:
            need = await self._check(exchange, headers)
            body = await self._read(scope, receive, headers)
            if need == "generate":
                self._check_room(scope)
            await self._app(scope, replay(body, receive), exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or 499
        except asyncio.CancelledError:
            if not self._drain.draining:
                raise
            await exchange.fail(CutOff("this replica stopped before the answer was there"))
        except Exception as error:
            await exchange.fail(error)

    async def _check(self, exchange: Exchange, headers: Headers) -> Need:
        scope = exchange.scope
        check_head(scope, self._limits)
        if scope["path"] not in _QUIET:
            self._drain.check()
            if scope.get(SPARE):
                raise TooManyConnections("too many connections are open; close some, or ask through fewer")
        caller = self._gatekeeper.identify(scope["method"], scope["path"], headers)
        exchange.account = Account(caller)
        need = self._gatekeeper.check_scope(caller, scope["method"], scope["path"])
        await self._access.admit(caller)
        account.set(exchange.account)
        exchange.before_head = partial(self._settle, exchange)
        return need

    def _check_room(self, scope: Scope) -> None:
        """Refuse while the queue is full, before the request is routed and parsed: under overload the model needs the
        cores. Raises Overloaded."""
        try:
            scope["app"].state.services.engine.check_room()
        except Overloaded as error:
            self._metrics.row_failures.labels(error.code).inc()
            raise

    async def _settle(self, exchange: Exchange) -> None:
        """Charge what was spent: before an answer begins, so that the next request finds it, and at its end."""
        if exchange.account is not None:
            await self._access.limiter.charge(exchange.account.caller, exchange.account.take())

    async def _read(self, scope: Scope, receive: Receive, headers: Headers) -> bytes:
        upload = any(scope["method"] == method and path.match(scope["path"]) for method, path in UPLOADS)
        return await read_body(
            receive,
            headers,
            max_bytes=self._settings.max_upload_bytes if upload else self._settings.max_body_bytes,
            total_s=self._limits.upload_s if upload else self._limits.body_s,
            limits=self._limits,
        )

    def _record(self, exchange: Exchange) -> None:
        scope = exchange.scope
        method = _method(scope)
        route = getattr(scope.get("route"), "path", None) or route_of(method, scope["path"]) or _UNMATCHED
        seconds = time.monotonic() - exchange.began_at
        self._metrics.http_requests.labels(route, method, str(exchange.status)).inc()
        self._metrics.http_seconds.labels(route).observe(seconds)
        level = logging.DEBUG if exchange.scope["path"] in _QUIET else logging.INFO
        facts = {"method": method, "route": route, "status": exchange.status, "ms": round(seconds * 1000, 1)}
        if exchange.account is not None and exchange.account.caller.id:
            facts["key"] = exchange.account.caller.id
        log.log(level, "request", extra={**facts, "request_id": exchange.request_id})
        if exchange.span is not NOTHING:
            exchange.tell_span(method, route)
        if exchange.scope["path"] not in OPEN_PATHS and self._access.audit.wants(method, route, exchange.status):
            self._audit(exchange, method, route)

    def _audit(self, exchange: Exchange, method: str, route: str) -> None:
        known = exchange.account
        found: dict[str, Any] = dict(known.facts) if known is not None else {}
        if known is not None and known.versions:
            found["versions"] = sorted(known.versions)
        self._access.audit.write(
            key=known.caller.id if known is not None else None,
            method=method,
            route=route,
            status=exchange.status,
            request_id=exchange.request_id,
            params=exchange.scope.get("path_params", {}),
            facts=found,
        )


class Exchange:
    """One request and its answer: marks the answer's head, remembers its status, turns a failure into an answer."""

    def __init__(self, scope: Scope, send: Send, request_id: str, limits: EdgeLimits, span: Span, drain: Drain) -> None:
        self.scope = scope
        self.request_id = request_id
        self.span = span
        self.began_at = time.monotonic()
        self.status = 0
        self.account: Account | None = None
        self.before_head: Callable[[], Awaitable[None]] | None = None
        self._send = send
        self._send_s = limits.send_s
        self._drain = drain

    async def send(self, message: Message) -> None:
        """Raises ClientDisconnect when the client reads nothing for `send_s`: a stalled reader must hold neither a row
        nor, by what it leaves unread, the connection."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.before_head is not None:
                await self.before_head()
            marks = MutableHeaders(raw=message.setdefault("headers", []))
            marks["x-request-id"] = self.request_id
            marks["x-content-type-options"] = "nosniff"
            if self._drain.draining or self.scope.get(SPARE):
                marks["connection"] = "close"  # its next request is another replica's
            if (traceparent := self.span.traceparent) is not None:
                marks["traceresponse"] = traceparent
        try:
            async with asyncio.timeout(self._send_s):
                await self._send(message)
        except TimeoutError:
            if (abort := self.scope.get(ABORT)) is not None:
                abort()
            raise ClientDisconnect from None

    def tell_span(self, method: str, route: str) -> None:
        """What the request turned out to be. Only our own failures are failures of a server's span."""
        self.span.rename(f"{method} {route}")
        facts: Facts = {
            "http.route": route,
            "http.response.status_code": self.status,
            "chorus.request_id": self.request_id,
        }
        self.span.set(facts)
        if self.account is not None and self.account.caller.id:
            self.span.set({"chorus.key": self.account.caller.id})
        if self.status >= 500 or self.status == 499:
            self.span.fail(str(self.status))

    async def fail(self, error: Exception) -> None:
        status = status_of(error)
        if status >= 500 and status not in (503, 504):
            log.error("request failed", exc_info=error)
        if self.status:
            raise error  # the head is out: only a closed connection can still say that this went wrong
        # what the client still sends, if anything, cannot be told from a next request: the connection ends here
        response = error_response(error, self.request_id, {"connection": "close"})
        with suppress(ClientDisconnect):
            await response(self.scope, _no_more, self.send)


_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else "OTHER"


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.match(given) else new_id("req_", bits=128)


async def _no_more() -> Message:
    return {"type": "http.disconnect"}
