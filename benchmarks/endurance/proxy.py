"""A proxy in front of replicas, as small as a measurement needs, and as strict: replicas take turns, and another one is
asked only where the first has certainly done nothing.

That is so when nobody took the connection; when a kept connection was found ended before a byte of the request was
written; and when a replica says that it did not take the request: 503 with `Retry-After` and the code `draining` or
`not_ready`. All else reaches the client as the failure it is, and is counted by its kind: who hangs up after the
request was sent may have been in the midst of it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import NamedTuple

from benchmarks.endurance.message import Head, body_of, error_code, read_head, refusal

NOT_TAKEN = ("draining", "not_ready")
REFUSED, TURNED_AWAY, STALE = "connection refused", "turned away with 503", "kept connection had ended"
HUNG_UP, BROKEN, NOBODY = "hung up after the request was sent", "broken off in mid-answer", "no replica took it"
ROUNDS = 4
PAUSE_S = 0.2


class _Link(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class _Failed(Exception):
    """The request may have been lost; the kind is its text."""


class Proxy:
    """Listens on a free port of this machine; `replicas` are ports. `passed_over` counts what was asked of another
    connection, `failed` what was not: both by kind."""

    def __init__(self, replicas: Sequence[int]) -> None:
        self._replicas = list(replicas)
        self._turn = itertools.count()
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._idle: dict[int, list[_Link]] = {port: [] for port in replicas}
        self.passed_over: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hang up on everybody, and wait until all is quiet."""
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        for link in itertools.chain.from_iterable(self._idle.values()):
            link.writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        try:
            with suppress(OSError, EOFError, asyncio.CancelledError):  # the client left, or all is over
                while head := await read_head(reader):
                    request = head.raw + b"".join([piece async for piece in body_of(head, reader)])
                    if not await self._answer(request, writer):
                        break
        finally:
            writer.close()
            del self._serving[task]

    async def _answer(self, request: bytes, client: asyncio.StreamWriter) -> bool:
        """Whether the client's connection is still good for another request."""
        first, many = next(self._turn), len(self._replicas)
        for attempt in range(ROUNDS * many):
            port = self._replicas[(first + attempt) % many]
            try:
                if await self._exchange(port, request, client):
                    return True
            except _Failed as failure:
                kind = str(failure)
                self.failed[kind] += 1
                if kind == BROKEN:
                    return False
                return await _write(client, refusal(kind.replace(" ", "_")))
            if attempt >= many - 1:
                await asyncio.sleep(PAUSE_S)
        self.failed[NOBODY] += 1
        return await _write(client, refusal(NOBODY.replace(" ", "_")))

    async def _exchange(self, port: int, request: bytes, client: asyncio.StreamWriter) -> bool:
        """Whether the replica took the request; its answer is passed on as it comes. Raises _Failed, or OSError when
        the client left."""
        link = await self._link(port)
        if link is None:
            return False
        reusable = False
        try:
            head = await _sent(link, request)
            if head.status == 503:
                body = await _whole(head, link.reader)
                reusable = not head.closes
                if "retry-after" in head.fields and error_code(body) in NOT_TAKEN:
                    self.passed_over[TURNED_AWAY] += 1
                    return False
                self.failed[f"503 {error_code(body)}".rstrip()] += 1
                await _write(client, head.raw + body)
                return True
            await _pass_on(head, link.reader, client)
            reusable = not head.closes
            return True
        finally:
            if reusable:
                self._idle[port].append(link)
            else:
                link.writer.close()

    async def _link(self, port: int) -> _Link | None:
        """A kept connection that has not ended, or a new one; None where nobody takes it."""
        while self._idle[port]:
            link = self._idle[port].pop()
            for _ in range(2):  # one turn to see what the sockets say, one to hear it
                await asyncio.sleep(0)
            if not (link.reader.at_eof() or link.reader.exception() or link.writer.is_closing()):
                return link
            link.writer.close()
            self.passed_over[STALE] += 1
        try:
            return _Link(*await asyncio.open_connection("127.0.0.1", port))
        except OSError:
            self.passed_over[REFUSED] += 1
            return None


async def _sent(link: _Link, request: bytes) -> Head:
    """The head of the answer. Raises _Failed."""
    try:
        link.writer.write(request)
        await link.writer.drain()
        head = await read_head(link.reader)
    except OSError:
        head = None
    except EOFError:
        raise _Failed(BROKEN) from None
    if head is None:
        raise _Failed(HUNG_UP)
    return head


async def _whole(head: Head, reader: asyncio.StreamReader) -> bytes:
    """The body. Raises _Failed."""
    try:
        return b"".join([piece async for piece in body_of(head, reader)])
    except (OSError, EOFError):
        raise _Failed(BROKEN) from None


async def _pass_on(head: Head, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
    """Piece by piece. Raises _Failed when the replica breaks off, OSError when the client leaves."""
    await _write(client, head.raw)
    async with aclosing(body_of(head, reader)) as pieces:
        while True:
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except (OSError, EOFError):
                raise _Failed(BROKEN) from None
            await _write(client, piece)


async def _write(client: asyncio.StreamWriter, content: bytes) -> bool:
    client.write(content)
    await client.drain()
    return True
