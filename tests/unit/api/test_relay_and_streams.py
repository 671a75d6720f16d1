"""Streams end with their reader, and work ends with its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.api.relay import Relay
from app.api.sse import EventStream, event, while_connected


class Source:
    """An async generator that tells whether it was ended, and by which task it was driven."""

    def __init__(self, count: int, fail: Exception | None = None) -> None:
        self.count, self.fail = count, fail
        self.ended = False
        self.given = 0
        self.tasks: set[object] = set()

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self.count):
                self.tasks.add(asyncio.current_task())
                self.given += 1
                yield number
                await asyncio.sleep(0)
            if self.fail is not None:
                raise self.fail
        finally:
            self.ended = True


def test_relay_hands_over_everything_from_one_task() -> None:
    async def test() -> None:
        source = Source(50)
        relay = Relay(source.items())
        first = await asyncio.create_task(relay.__anext__())
        assert [first, *[item async for item in relay]] == list(range(50))
        assert len(source.tasks) == 1
        assert source.ended

    asyncio.run(test())


def test_relay_raises_where_the_source_failed_and_again_after() -> None:
    async def test() -> None:
        relay = Relay(Source(2, ValueError("broken")).items())
        assert [await anext(relay), await anext(relay)] == [0, 1]
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                await anext(relay)

    asyncio.run(test())


def test_closed_relay_ends_its_source() -> None:
    async def test() -> None:
        source = Source(1_000_000)
        relay = Relay(source.items())
        await anext(relay)
        await relay.aclose()
        assert source.ended

    asyncio.run(test())


def test_relay_does_not_run_ahead_of_a_slow_reader() -> None:
    async def test() -> None:
        source = Source(1_000_000)
        relay = Relay(source.items())
        await anext(relay)
        for _ in range(100):
            await asyncio.sleep(0)
        assert source.given < 20
        await relay.aclose()

    asyncio.run(test())


async def gone() -> Message:
    return {"type": "http.disconnect"}


async def staying() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def test_work_ends_when_its_client_leaves() -> None:
    async def test() -> None:
        ended = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        with pytest.raises(ClientDisconnect):
            await while_connected(gone, work())
        assert ended.is_set()

    asyncio.run(test())


def test_work_of_a_client_that_stays_gives_its_result_or_its_error() -> None:
    async def answer() -> int:
        return 3

    async def fail() -> int:
        raise ValueError("no")

    assert asyncio.run(while_connected(staying, answer())) == 3
    with pytest.raises(ValueError, match="no"):
        asyncio.run(while_connected(staying, fail()))


def test_event_stream_that_nobody_reads_ends_its_source() -> None:
    async def test() -> None:
        source = Source(1_000_000)

        async def events() -> AsyncGenerator[bytes, None]:
            numbers = source.items()
            try:
                async for number in numbers:
                    yield event({"number": number})
            finally:
                await numbers.aclose()

        async def send(message: Message) -> None:
            await asyncio.sleep(0)

        with pytest.raises(ClientDisconnect):
            await EventStream(events())({"type": "http"}, gone, send)
        assert source.ended or source.given == 0

    asyncio.run(test())


def test_event_is_one_line_of_data_whatever_the_text_holds() -> None:
    sent = event({"text": "a\nb\r\n\n\u2028c"}, id="7", name="x")
    assert sent.startswith(b"id: 7\nevent: x\ndata: ")
    assert sent.endswith(b"\n\n")
    assert sent.count(b"\n") == 4
    assert b"\r" not in sent
