"""A proxy in front of replicas, as small as a measurement needs: takes turns, and asks the next one instead when a
replica refuses the connection, drains (503), or hangs up before a word of its answer. What has begun is passed on as it
comes. Requests are answered whole, one at a time on a connection.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress

HEAD_END = b"\r\n\r\n"


class Proxy:
    """Listens on a free port of this machine; `replicas` are ports. `retried` counts what another replica answered."""

    def __init__(self, replicas: Sequence[int]) -> None:
        self._replicas = list(replicas)
        self._turn = itertools.count()
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.retried = 0
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hang up on everybody, and wait until all is quiet."""
        assert self._server is not None
        self._server.close()
        for writer in self._serving.values():
            writer.close()
        await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        with suppress(OSError, EOFError):
            while request := await _message(reader):
                writer.write(await self._ask(request))
                await writer.drain()
        writer.close()
        del self._serving[task]

    async def _ask(self, request: bytes) -> bytes:
        first = next(self._turn)
        answer = b""
        for attempt in range(4 * len(self._replicas)):
            port = self._replicas[(first + attempt) % len(self._replicas)]
            answer = await _exchange(port, request)
            if answer and not answer.startswith(b"HTTP/1.1 503"):
                return answer
            self.retried += 1
            if attempt >= len(self._replicas) - 1:
                await asyncio.sleep(0.2)
        return answer or b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"


async def _exchange(port: int, request: bytes) -> bytes:
    """The replica's whole answer on a connection of its own; empty if it gave none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return b""
    try:
        writer.write(request)
        await writer.drain()
        return await _message(reader)
    except (OSError, EOFError):
        return b""
    finally:
        writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One request or answer whose length is stated; empty at the end. Raises EOFError for one that breaks off."""
    try:
        head = await reader.readuntil(HEAD_END)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return b""
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    return head + await reader.readexactly(length)
