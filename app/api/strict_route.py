"""A route whose JSON body is read by our strict reader; FastAPI then validates the value as it does any other."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from anyio import to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.api.faults import UnsupportedMediaType
from app.api.strict_json import read_json

LARGE = 1 << 20
"""Bytes from which a body is read on another thread: streams go on meanwhile."""


class StrictRequest(Request):
    """A request that holds its JSON already."""

    parsed: Any = None

    async def json(self) -> Any:
        return self.parsed


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_json = self.body_field is not None

        async def strict(request: Request) -> Response:
            if not takes_json:
                return await handle(request)
            _check_type(request.headers.get("content-type", ""))
            reading = StrictRequest(request.scope, request.receive)
            body = await reading.body()
            reading.parsed = read_json(body) if len(body) < LARGE else await to_thread.run_sync(read_json, body)
            return await handle(reading)

        return strict


def _check_type(content_type: str) -> None:
    """A JSON type is demanded: other types are what a foreign web page could send without being asked."""
    media = content_type.partition(";")[0].strip(" \t").lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise UnsupportedMediaType("send JSON with `Content-Type: application/json`", param="content-type")
