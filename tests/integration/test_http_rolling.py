"""Replicas that are restarted in turn under load, behind a proxy that repeats nothing a replica may have begun: no
request is lost, whichever moment of it a stop meets."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI

from app.cli.bench.load import Budget, Load
from app.cli.bench.wire import Wire
from benchmarks.endurance.proxy import TURNED_AWAY, Proxy
from benchmarks.endurance.site import codes_of, load_of
from tests.fakes import make_world
from tests.live import HANG_S, Live, serving

RESTARTS, CLIENTS = 12, 8
STAY_S = 0.2


@pytest.mark.anyio
async def test_rolling_restarts_under_load_lose_no_request(
    tmp_path: Path, redis_server_url: str, free_tcp_port_factory: Callable[[], int]
) -> None:
    ports = [free_tcp_port_factory() for _ in range(2)]

    async def replica(number: int) -> AsyncGenerator[None, None]:
        """Up at the first turn, stopped and up anew at each one after."""
        for life in range(RESTARTS):
            world = make_world(tmp_path / f"{number}-{life}", redis_server_url)
            async with up(world.app, ports[number]) as live:
                yield
                live.server.handle_exit(signal.SIGTERM, None)

    rolling = [replica(number) for number in range(2)]
    for one in rolling:
        await anext(one)
    async with Proxy(ports) as proxy, Wire(f"http://127.0.0.1:{proxy.port}", None) as wire:
        load = Load(wire, load_of("echo", "sentiment", streamed=0.5))
        asking = asyncio.create_task(load.closed(CLIENTS, Budget(seconds=HANG_S * 10, requests=None)))
        for turn in range(RESTARTS):
            await asyncio.sleep(STAY_S)
            await anext(rolling[turn % 2])
        asking.cancel()
        await asyncio.wait([asking])
        assert (proxy.failed, codes_of(load.run)) == ({}, {})
        assert proxy.passed_over[TURNED_AWAY] > 0
        assert sum(one.first is not None for one in load.run.outcomes) > RESTARTS
    for one in rolling:
        await one.aclose()


@asynccontextmanager
async def up(app: FastAPI, port: int) -> AsyncIterator[Live]:
    """A server whose start and end do not hold up this loop."""
    server = serving(app, port)
    live = await asyncio.to_thread(server.__enter__)
    try:
        yield live
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)
