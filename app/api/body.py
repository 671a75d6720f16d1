"""Reading a request's body: all of it before the application runs, never more than its limit, never for ever."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from app.api.faults import BadRequest, HeadersTooLarge, ReadTimeout, UnsupportedMediaType
from app.errors import TooLarge


@dataclass(frozen=True)
class EdgeLimits:
    """Bounds of one request's bytes."""

    max_line_bytes: int = 8 << 10
    max_header_fields: int = 100
    max_header_bytes: int = 16 << 10
    chunk_s: float = 10.0
    body_s: float = 30.0
    upload_s: float = 600.0
    send_s: float = 60.0


def check_head(scope: Scope, limits: EdgeLimits) -> None:
    """Raises HeadersTooLarge, or BadRequest: for another version of HTTP than what answers, or for a body framed in two
    ways at once (request smuggling)."""
    if scope["http_version"] not in ("1.0", "1.1"):
        raise BadRequest("this server speaks HTTP/1.1")
    # the parser bounds only what comes in pieces: a long line may be there with the first bytes
    if len(scope["method"]) + len(scope["raw_path"]) + len(scope["query_string"]) > limits.max_line_bytes:
        raise HeadersTooLarge(f"at most {limits.max_line_bytes} bytes of method, path and query")
    fields = scope["headers"]
    size = sum(len(name) + len(value) for name, value in fields)
    if len(fields) > limits.max_header_fields or size > limits.max_header_bytes:
        raise HeadersTooLarge(
            f"at most {limits.max_header_fields} header fields and {limits.max_header_bytes} bytes of them"
        )
    names = [name for name, _ in fields]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise BadRequest("content-length and transfer-encoding exclude each other")


async def read_body(receive: Receive, headers: Headers, *, max_bytes: int, total_s: float, limits: EdgeLimits) -> bytes:
    """The whole body; raises UnsupportedMediaType, TooLarge, ReadTimeout or ClientDisconnect."""
    _check_encoding(headers)
    announced = headers.get("content-length", "0")
    if announced.isdigit() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(total_s):
            more = True
            while more:
                async with asyncio.timeout(limits.chunk_s):
                    message = await receive()
                chunk, more = _chunk(message)
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
    except TimeoutError:
        raise ReadTimeout("the body did not arrive in time") from None
    return b"".join(chunks)


def _check_encoding(headers: Headers) -> None:
    """Bodies are taken as they come: a packed one would be read as what it is not, an unpacked one has no limit."""
    if any(value.strip().lower() not in ("", "identity") for value in headers.getlist("content-encoding")):
        raise UnsupportedMediaType("send the body without a Content-Encoding", param="content-encoding")


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, then whatever the connection says: only that the client left."""
    pending = [body]

    async def replayed() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replayed


def _chunk(message: Message) -> tuple[bytes, bool]:
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body is larger than {max_bytes} bytes", param="body")
