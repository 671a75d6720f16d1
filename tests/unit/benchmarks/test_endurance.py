"""The endurance page keeps other parts; the proxy passes over replicas that drain; slopes are those of the memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli.bench.outcomes import Outcome, Run
from app.cli.bench.wire import Wire
from benchmarks.endurance.__main__ import merged
from benchmarks.endurance.proxy import Proxy
from benchmarks.endurance.site import answered_s, failures, ms
from benchmarks.endurance.soak import Sample, slope_share


def test_section_takes_the_place_of_its_like_and_leaves_others(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for section in ("## One\n\nfirst\n", "## Two\n\nsecond\n", "## One\n\nanew\n"):
        page.write_text(merged(page, section))
    text = page.read_text()
    assert text.startswith("# Endurance\n")
    assert "first" not in text
    assert text.index("second") < text.index("anew")


def test_slope_is_the_growth_of_the_second_half() -> None:
    flat = [Sample(at, 100.0, 5) for at in range(10)]
    assert slope_share(flat) == pytest.approx(0)
    late = [Sample(at, 100.0 + max(0, at - 5), 5) for at in range(10)]
    assert slope_share(late) == pytest.approx(4 / 102)


def test_answers_are_timed_and_failures_are_counted_by_code() -> None:
    given: list[tuple[float, str | None]] = [(0.4, None), (9.0, "overloaded"), (0.2, None), (9.0, "draining")]
    run = Run([Outcome(("mood",), 1.0, 1.0, 1.0 + seconds, codes=(code,)) for seconds, code in given])
    assert answered_s(run) == pytest.approx([0.2, 0.4])
    assert failures(run) == "1 overloaded, 1 draining"
    assert (failures(Run()), ms(answered_s(run), 0.5), ms([], 0.5)) == ("0", "300 ms", "–")


async def _replica(answer: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


def _port(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"
DRAINING = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.anyio
@pytest.mark.parametrize("bad", [DRAINING, b"", None], ids=["drains", "hangs up", "is gone"])
async def test_proxy_asks_the_other_replica(bad: bytes | None, free_tcp_port_factory: Callable[[], int]) -> None:
    good = await _replica(GOOD)
    other = await _replica(bad) if bad is not None else None
    async with Proxy([_port(other) if other else free_tcp_port_factory(), _port(good)]) as proxy:
        async with Wire(f"http://127.0.0.1:{proxy.port}", None) as wire:
            for _ in range(3):
                async with wire.ask("GET", "/") as reply:
                    assert (reply.status, await reply.read()) == (200, b"good")
        assert proxy.retried > 0
    for server in (good, other):
        if server is not None:
            server.close()
