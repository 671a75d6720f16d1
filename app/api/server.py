"""uvicorn, made fit to stand without a proxy: a deadline for the head, a bound on connections, JSON for malformed
messages, and a drain on SIGTERM that keeps the listener open while requests are being finished.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import cast

import h11
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api.closing import LingeringTransport
from app.api.connections import ABORT, SPARE, Connections
from app.api.drain import Drain
from app.api.errors import detail_of
from app.api.faults import BadRequest
from app.api.handshakes import begin_no_more
from app.errors import ChorusError
from app.telemetry.ids import new_id

log = logging.getLogger(__name__)
HEAD_S = 10.0
KEEP_ALIVE_S = 75
HEAD_BYTES = 32 << 10
CLOSING_S = 5
LAST_HEAD_S = 1.0
ACCEPTING_S = 0.05
"""For handshakes that have begun to end, and then a turn or two of the loop, in which what it has accepted gets its
protocol."""


class Protocol(H11Protocol):
    """h11, but a head that does not arrive in `HEAD_S` ends the connection, whoever is refused before all was sent gets
    to read why, and the guard can end a connection whose client reads nothing. When the server ends, a request that is
    under way is still answered: `shutdown`."""

    _head_deadline: asyncio.TimerHandle | None = None
    _is_last = False
    _place = "taken"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._wire = LingeringTransport(transport, self, self._unread)
        super().connection_made(cast(asyncio.Transport, self._wire))
        self._asked, self.app = cast(ASGIApp, self.app), self._ask
        self._place = self._known.arrive()
        self._await_head()
        if self._place == "refused":
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._known.leave()
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_deadline is None and self.conn.their_state is h11.IDLE:
            self._await_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_arrived()
        if self._is_last and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            self._head_arrived()  # between two requests the keep-alive timer watches
            if self.conn.trailing_data[0]:
                self._await_head()  # unless a part of the next one is there already

    def shutdown(self) -> None:
        """End the connection once the answer that it is waiting for is out. A request may be on its way without a byte
        of it read: a connection closed then is reset, and its client cannot know whether it was heard. So one that is
        new, or has begun a head, or has bytes waiting, gets `LAST_HEAD_S` to say it all, and hears that we drain; one
        that rests between two requests gets what is left of the drain's first `LAST_HEAD_S`: a client who uses it
        often is told by an answer, not by a connection that ends while he writes."""
        self._is_last = True
        if self._head_deadline is not None or (self._rests() and self._bytes_wait()):
            self._await_last_head(LAST_HEAD_S)
        elif self._rests() and (left := self._state.drain.left_of(LAST_HEAD_S)):
            self._await_last_head(left)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """A message that is not HTTP gets the shape of every other error, if there is still somebody to read it."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        request_id = new_id("req_", bits=128)
        log.info("request", extra={"method": "OTHER", "status": 400, "request_id": request_id})
        detail = detail_of(BadRequest("this is not valid HTTP"), request_id)
        body = json.dumps({"error": detail.model_dump()}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", request_id.encode()),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _state(self) -> State:
        return cast(FastAPI, self.config.app).state

    @property
    def _known(self) -> Connections:
        known: Connections = self._state.connections
        return known

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, told what only the connection knows."""
        scope[ABORT] = self._wire.cut
        scope[SPARE] = self._place == "spare"
        await self._asked(scope, receive, send)

    def _unread(self) -> bool:
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _rests(self) -> bool:
        """Between two requests."""
        return self.cycle is None or self.cycle.response_complete

    def _bytes_wait(self) -> bool:
        """Whether the client has sent what nobody has read yet. Its having ended the connection is no such thing."""
        with suppress(OSError), socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as peek:
            return bool(peek.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return False

    def _await_head(self) -> None:
        self._head_deadline = self.loop.call_later(HEAD_S, self.transport.abort)

    def _await_last_head(self, seconds: float) -> None:
        self._head_arrived()
        self._head_deadline = self.loop.call_later(seconds, self._end_unless_asked)

    def _end_unless_asked(self) -> None:
        """Bytes that arrived while the loop was held up are read first."""
        if self._bytes_wait():
            self._head_deadline = self.loop.call_later(LAST_HEAD_S, self.transport.close)
        else:
            self.transport.close()

    def _head_arrived(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


class Server(uvicorn.Server):
    """The first SIGTERM or SIGINT begins a drain; the second ends at once. `cut_off` ends what outlasts the drain."""

    def __init__(
        self, config: uvicorn.Config, drain: Drain, cut_off: Callable[[], Awaitable[None]], listener: socket.socket
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._cut_off = cut_off
        self._listener = listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[self._listener])
        if self.started:
            host, port = self._listener.getsockname()[:2]
            log.info("listening", extra={"url": f"http://{f'[{host}]' if ':' in host else host}:{port}"})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain.draining or not self.started:
            self.should_exit = self.force_exit = True
        self._drain.begin()

    async def on_tick(self, counter: int) -> bool:
        if self._drain.finished and not self.should_exit:
            log.info("drained", extra={"cut_off": self._drain.in_flight})
            if self._drain.in_flight:
                await self._cut_off()
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, but answer whoever had connected by then: the kernel resets those that nobody accepts,
        and asyncio drops those that it has accepted when their server closes before they have a protocol."""
        if self.force_exit:
            await super().shutdown(sockets)
            return
        loop = asyncio.get_running_loop()
        begin_no_more(self._listener)
        await asyncio.sleep(ACCEPTING_S)
        loop.remove_reader(self._listener)
        await asyncio.sleep(ACCEPTING_S)
        arrived = list(_accepted(self._listener))
        for server in self.servers:
            server.close()
        for connection in arrived:
            await loop.connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    def _protocol(self) -> Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """All connections that wait now."""
    with suppress(OSError):
        while True:
            yield listener.accept()[0]


def bind(host: str, port: int) -> socket.socket:
    """Take the address before anything slow begins. Nothing is accepted until the server listens on it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, or asyncio leaves Nagle's algorithm on: a body then waits 40 ms for the client to acknowledge its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise AddressTaken(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another with --port or CHORUS_PORT, "
            "0 takes a free one",
            param="port",
        ) from error
    return listener


class AddressTaken(ChorusError):
    """The address cannot be listened on."""

    code = "address_taken"


def server_config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSING_S,
        h11_max_incomplete_event_size=HEAD_BYTES,
        backlog=1024,
    )
