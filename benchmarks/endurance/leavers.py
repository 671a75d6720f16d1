"""Clients that do not stay to the end: of a stream, of an answer, of their own request."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

from app.cli.bench.workload import Shot

MID_STREAM, MID_ANSWER, MID_REQUEST = "in mid-stream", "before the answer", "in mid-request"
LONGEST_S = 0.3
REST_S = 0.1


class Leavers:
    """Each opens a connection, asks, leaves, and comes back as another. `left` counts how they did; a stream or an
    answer that came before its client left is `answered`."""

    def __init__(self, url: str, shots: Iterator[Shot], *, seed: int = 0) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._shots = shots
        self._dice = random.Random(seed)
        self.left: Counter[str] = Counter()

    async def run(self, clients: int, seconds: float) -> Counter[str]:
        until = time.monotonic() + seconds
        await asyncio.gather(*(self._client(until) for _ in range(clients)))
        return self.left

    async def _client(self, until: float) -> None:
        while time.monotonic() < until:
            with suppress(OSError, EOFError):
                self.left[await self._leave(next(self._shots))] += 1
            await asyncio.sleep(REST_S)

    async def _leave(self, shot: Shot) -> str:
        """How it left. The connection is reset where the service still writes to it."""
        head = (
            f"POST {shot.path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(shot.body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            if self._dice.random() < 0.2:
                writer.write(head.encode() + shot.body[: len(shot.body) // 2])
                await writer.drain()
                return MID_REQUEST
            writer.write(head.encode() + shot.body)
            await writer.drain()
            if shot.stream:
                return await _after_first_event(reader)
            return await self._before_answer(reader)
        finally:
            writer.close()

    async def _before_answer(self, reader: asyncio.StreamReader) -> str:
        try:
            async with asyncio.timeout(self._dice.uniform(0, LONGEST_S)):
                return "answered" if await reader.read(1) else "refused"
        except TimeoutError:
            return MID_ANSWER


async def _after_first_event(reader: asyncio.StreamReader) -> str:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"text/event-stream" not in head:
        return "refused"
    event = await reader.readuntil(b"\n\n")
    return "answered" if b'"finish_reason"' in event else MID_STREAM
