"""Server-sent events: how one is written, and the response that sends them until the end or until nobody listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
MEDIA_TYPE = "text/event-stream"
_LINE = {"type": "string"}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            MEDIA_TYPE: {
                "itemSchema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "data": {**_LINE, "description": "JSON, or `[DONE]` as the last event's."},
                        "event": _LINE,
                        "id": _LINE,
                    },
                }
            }
        }
    }
}
"""How the contract describes an answer that may be a stream: by one of its events."""


def event(data: Mapping[str, Any], *, id: str | None = None, name: str | None = None) -> bytes:
    """One event of one data line; JSON keeps line breaks out of it."""
    head = (f"id: {id}\n" if id is not None else "") + (f"event: {name}\n" if name is not None else "")
    return f"{head}data: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n".encode()


class EventStream(Response):
    """Sends what `events` yields. A client that leaves ends the generator at once, and with it the work behind it.

    `events` handles its own failures: after the first byte an error is an event, not a status.
    """

    media_type = MEDIA_TYPE

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._write(send))
        finally:
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._events:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it as soon as the client leaves; raises ClientDisconnect then.

    `receive` must have given the whole body already: the next thing it says is that the connection ended.
    """
    working = asyncio.create_task(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        await _cancel(working)
        await _cancel(watching)


def connected(request: Request, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
    return while_connected(request.receive, work)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def _cancel(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
