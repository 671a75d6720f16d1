"""HTTP/1.1 messages as a proxy sees them: a head, and a body whose end is stated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import NamedTuple

HEAD_END = b"\r\n\r\n"


class Head(NamedTuple):
    """`raw` with the empty line; `first` is the request's or status line, `fields` have names in lower case."""

    raw: bytes
    first: str
    fields: Mapping[str, str]

    @property
    def status(self) -> int:
        return int(self.first.split(" ", 2)[1])

    @property
    def chunked(self) -> bool:
        return self.fields.get("transfer-encoding", "").lower() == "chunked"

    @property
    def closes(self) -> bool:
        return self.fields.get("connection", "").lower() == "close"


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """None at the end of the connection. Raises EOFError for a head that breaks off, OSError for a reset."""
    try:
        raw = await reader.readuntil(HEAD_END)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = raw.decode("latin-1").rstrip().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Head(raw, first, {name.strip().lower(): value.strip() for name, _, value in pairs})


async def body_of(head: Head, reader: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
    """The body's bytes as they stand on the wire, piece by piece. Raises EOFError for one that breaks off."""
    if not head.chunked:
        if length := int(head.fields.get("content-length", 0)):
            yield await reader.readexactly(length)
        return
    size = -1
    while size != 0:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        yield line + await reader.readexactly(size + 2)


def error_code(body: bytes) -> str:
    """The code of a body in the service's one error shape; empty for any other."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"])
    except (ValueError, KeyError, TypeError):
        return ""


def refusal(code: str) -> bytes:
    """A proxy's own answer, in the shape of the service's."""
    body = json.dumps({"error": {"code": code, "message": "said by the proxy"}}).encode()
    return b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )
