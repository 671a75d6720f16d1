"""Promises of the load's own HTTP client, against servers that answer what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.cli.bench.wire import ConnectFailed, Wire

pytestmark = pytest.mark.anyio
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n"
CLOSING = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"


class Server:
    """Answers each request with the next of `answers`; an empty one closes the connection without a word."""

    def __init__(self, *answers: bytes) -> None:
        self.answers, self.heads, self.connections = list(answers), list[bytes](), 0
        self.url = ""

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0)
                writer.write(answer)
                if not answer or b"Connection: close" in answer:
                    return
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()


@asynccontextmanager
async def serving(*answers: bytes) -> AsyncIterator[tuple[Server, Wire]]:
    server = Server(*answers)
    listener = await asyncio.start_server(server.take, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/base/"
    try:
        async with Wire(server.url, " key ") as wire:
            yield server, wire
    finally:
        listener.close()


async def ask(wire: Wire) -> tuple[int, bytes]:
    async with wire.ask("GET", "/x") as reply:
        return reply.status, await reply.read()


async def test_connection_is_kept_and_every_request_carries_the_key_and_the_path() -> None:
    async with serving(WHOLE, CHUNKED, WHOLE) as (server, wire):
        assert [await ask(wire) for _ in range(3)] == [(200, b"ok"), (200, b"abcd"), (200, b"ok")]
        assert server.connections == 1
        assert all(head.startswith(b"GET /base/x HTTP/1.1\r\n") for head in server.heads)
        assert all(b"\r\nauthorization: Bearer key\r\n" in head for head in server.heads)


async def test_connection_that_the_service_ends_is_replaced() -> None:
    async with serving(CLOSING, WHOLE, b"", WHOLE) as (server, wire):
        assert await ask(wire) == (429, b"no")
        assert await ask(wire) == (200, b"ok")
        assert await ask(wire) == (200, b"ok")  # the kept connection ended without an answer: asked again on a new one
        assert server.connections == 3


async def test_new_connection_that_ends_without_an_answer_is_an_error() -> None:
    async with serving(b"") as (_, wire):
        with pytest.raises(EOFError):
            await ask(wire)


async def test_reply_that_is_left_unread_ends_its_connection() -> None:
    async with serving(CHUNKED, WHOLE) as (server, wire):
        async with wire.ask("GET", "/x") as reply:
            assert reply.headers["transfer-encoding"] == "chunked"
        assert await ask(wire) == (200, b"ok")
        assert server.connections == 2


async def test_silent_address_says_that_nobody_listens() -> None:
    async with Wire("http://127.0.0.1:1", None) as wire:
        with pytest.raises(ConnectFailed):
            await ask(wire)
