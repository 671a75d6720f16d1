"""The proxy asks again only where a replica has certainly done nothing; all else is a failure that its client sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from app.cli.bench.load import Budget, Load
from app.cli.bench.wire import Wire
from benchmarks.endurance.proxy import BROKEN, HUNG_UP, NOBODY, REFUSED, STALE, TURNED_AWAY, Proxy
from benchmarks.endurance.site import codes_of, load_of

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def refusal(code: str, *, retry_after: bool = True) -> bytes:
    body = json.dumps({"error": {"code": code}}).encode()
    later = b"retry-after: 1\r\n" if retry_after else b""
    head = b"HTTP/1.1 503 Service Unavailable\r\n" + later + b"content-length: %d\r\n\r\n" % len(body)
    return head + body


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text)


def streamed(*events: bytes) -> bytes:
    return STREAM + b"".join(chunk(b"data: " + event + b"\n\n") for event in events)


LAST = b'{"index": 0, "finish_reason": "stop"}'
CUT = b'{"index": 0, "finish_reason": "drain", "error": {"code": "cut_off"}}'
WHOLE = streamed(b'{"index": 0, "text": "a"}', LAST, b"[DONE]") + b"0\r\n\r\n"


@asynccontextmanager
async def replica(*answers: bytes, keeps: bool = False, port: int = 0) -> AsyncIterator[int]:
    """Gives its answers in turn, the last for ever, and hangs up after each unless it `keeps` the connection."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((line.split(b":")[1] for line in head.split(b"\r\n") if b"content-length" in line), b"0")
                await reader.readexactly(int(length))
                writer.write(left.pop(0) if len(left) > 1 else left[0])
                await writer.drain()
                if not keeps:
                    return
        except (EOFError, OSError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


@asynccontextmanager
async def proxied(*replicas: Sequence[bytes] | int) -> AsyncIterator[tuple[Proxy, Wire]]:
    """A proxy in front of replicas with these answers; a number is a port."""
    async with AsyncExitStack() as stack:
        ports = [one if isinstance(one, int) else await stack.enter_async_context(replica(*one)) for one in replicas]
        proxy = await stack.enter_async_context(Proxy(ports))
        yield proxy, await stack.enter_async_context(Wire(f"http://127.0.0.1:{proxy.port}", None))


async def got(wire: Wire) -> tuple[int, bytes]:
    async with wire.ask("POST", "/", b"{}") as reply:
        return reply.status, await reply.read()


@pytest.mark.anyio
@pytest.mark.parametrize("code", ["draining", "not_ready"])
async def test_newcomer_turned_away_is_asked_of_another(code: str) -> None:
    async with proxied([refusal(code)], [GOOD]) as (proxy, wire):
        assert await got(wire) == (200, b"good")
        assert (proxy.passed_over, proxy.failed) == ({TURNED_AWAY: 1}, {})


@pytest.mark.anyio
async def test_refused_connection_is_asked_of_another(free_tcp_port_factory: Callable[[], int]) -> None:
    async with proxied(free_tcp_port_factory(), [GOOD]) as (proxy, wire):
        assert await got(wire) == (200, b"good")
        assert (proxy.passed_over, proxy.failed) == ({REFUSED: 1}, {})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal("cut_off"), "503 cut_off"),
        (refusal("store_unavailable"), "503 store_unavailable"),
        (refusal("draining", retry_after=False), "503 draining"),
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "503"),
    ],
)
async def test_any_other_503_reaches_the_client_and_counts(answer: bytes, kind: str) -> None:
    async with proxied([answer], [GOOD]) as (proxy, wire):
        assert await got(wire) == (503, answer.partition(b"\r\n\r\n")[2])
        assert (proxy.passed_over, proxy.failed) == ({}, {kind: 1})


@pytest.mark.anyio
async def test_replica_that_hangs_up_after_the_request_was_sent_is_a_failure() -> None:
    async with proxied([b""], [GOOD]) as (proxy, wire):
        status, body = await got(wire)
        assert (status, json.loads(body)["error"]["code"]) == (502, "hung_up_after_the_request_was_sent")
        assert (proxy.passed_over, proxy.failed) == ({}, {HUNG_UP: 1})


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [GOOD[:-1], GOOD[:20], refusal("draining")[:-1], WHOLE[:-5], WHOLE[: len(STREAM) + 9]],
    ids=["in the body", "in the head", "in a refusal", "before the last chunk", "in a chunk"],
)
async def test_answer_that_breaks_off_is_a_failure(answer: bytes) -> None:
    async with proxied([answer], [GOOD]) as (proxy, wire):
        with pytest.raises(EOFError):
            await got(wire)
        assert (proxy.passed_over, proxy.failed) == ({}, {BROKEN: 1})


@pytest.mark.anyio
async def test_kept_connection_that_had_ended_is_replaced_and_counted_apart() -> None:
    async with AsyncExitStack() as first:
        port = await first.enter_async_context(replica(GOOD))  # which hangs up although it said that it keeps
        async with proxied(port) as (proxy, wire):
            for _ in range(3):
                assert await got(wire) == (200, b"good")
                await asyncio.sleep(0.05)
            assert (proxy.passed_over, proxy.failed) == ({STALE: 2}, {})


@pytest.mark.anyio
async def test_kept_connection_is_used_again_and_its_hanging_up_on_a_request_is_a_failure() -> None:
    taken: list[asyncio.StreamWriter] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)
        await reader.readuntil(b"{}")
        writer.write(GOOD)
        await reader.readuntil(b"{}")
        writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    async with server, proxied(int(server.sockets[0].getsockname()[1])) as (proxy, wire):
        assert [(await got(wire))[0] for _ in range(2)] == [200, 502]
        assert len(taken) == 1
        assert (proxy.passed_over, proxy.failed) == ({}, {HUNG_UP: 1})


@pytest.mark.anyio
async def test_request_that_no_replica_takes_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, free_tcp_port_factory: Callable[[], int]
) -> None:
    monkeypatch.setattr("benchmarks.endurance.proxy.PAUSE_S", 0)
    async with proxied(free_tcp_port_factory()) as (proxy, wire):
        assert (await got(wire))[0] == 502
        assert proxy.failed == {NOBODY: 1}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (WHOLE, None),
        (streamed(b'{"index": 0, "text": "a"}', CUT, b"[DONE]") + b"0\r\n\r\n", "cut_off"),
        (streamed(b'{"index": 0, "text": "a"}') + b"0\r\n\r\n", "stream_cut"),
        (streamed(b'{"index": 0, "text": "a"}'), "connection_lost"),
    ],
    ids=["whole", "cut with its event", "ends without its event", "broken off"],
)
async def test_stream_counts_as_answered_only_with_its_last_event(answer: bytes, code: str | None) -> None:
    async with proxied([answer]) as (_, wire):
        load = Load(wire, load_of("a", streamed=1.0))
        run = await load.closed(1, Budget(seconds=None, requests=1))
        assert codes_of(run) == ({code: 1} if code else {})


@pytest.mark.anyio
async def test_client_that_leaves_is_nobody_s_failure() -> None:
    async with proxied([streamed(b'{"index": 0, "text": "a"}')], [GOOD]) as (proxy, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\n{")
        await writer.drain()
        writer.close()
        assert await reader.read() == b""
        assert (proxy.passed_over, proxy.failed) == ({}, {})
