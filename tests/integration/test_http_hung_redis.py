"""Redis hangs (SIGSTOP) under many changes and job calls: they are refused soon, and no answer waits behind them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.strict_route import LARGE
from app.main import create_app
from app.settings import Settings
from prompt_store import PromptStore
from prompt_store.redis_metadata import DEFAULT_TIMEOUT_S
from tests.fakes import FakeBackbone, FakeEngineService, publish
from tests.live import HANG_S, serving
from tests.redis_server import RedisServer

CALLS, COLD = 10, 9
"""Of each kind of call, and versions that nobody has asked for."""
SOON_S = 3.5 * DEFAULT_TIMEOUT_S
"""One timeout, and what a busy machine adds. Without a breaker a call has four, and others wait for its thread."""
LARGE_INPUT = "a" * (LARGE + 1)
"""Makes a body that is read on another thread."""

Timed = tuple[float, httpx.Response]


@pytest.fixture
def url(server: RedisServer, tmp_path: Path) -> Iterator[str]:
    """Of a service with one loaded version, and more that nobody has asked for."""
    with PromptStore.open(server.url, tmp_path / "blobs") as store:
        publish(store, FakeBackbone(), "echo", "{text}")
        for _ in range(COLD):
            publish(store, FakeBackbone(), "echo", "{text}", alias=None)
    settings = Settings(data_dir=tmp_path, redis_url=server.url, reconcile_s=0.2, max_body_bytes=4 * LARGE)
    with serving(create_app(settings, backbone=FakeBackbone(), engine=FakeEngineService())) as live:  # type: ignore[arg-type]
        yield live.url


async def timed(call: Awaitable[httpx.Response]) -> Timed:
    began = time.monotonic()
    answer = await call
    return time.monotonic() - began, answer


def needing_redis(client: httpx.AsyncClient) -> list[Awaitable[Timed]]:
    """Changes of the registry and job calls, in turns."""
    alias = {"json": {"version": 1}}
    calls: list[Callable[[int], Awaitable[httpx.Response]]] = [
        lambda n: client.put(f"/v1/tasks/new-{n}", json={"fields": ["text"]}),
        lambda n: client.get("/v1/train"),
        lambda n: client.put("/v1/tasks/echo/aliases/canary", **alias),
        lambda n: client.get(f"/v1/train/job-{n:020x}"),
        lambda n: client.get("/v1/datasets"),
    ]
    return [timed(call(number)) for number in range(CALLS) for call in calls]


def generates(client: httpx.AsyncClient) -> list[Awaitable[Timed]]:
    """Of a loaded version, of such as must be loaded first, and with bodies that take a thread to read."""

    def ask(ref: str, text: str) -> Awaitable[Timed]:
        return timed(client.post(f"/v1/tasks/{ref}/generate", json={"input": text}))

    cold = [ask(f"echo@{number}", "hello") for number in range(2, COLD + 2)]
    return [*cold, *(ask("echo", LARGE_INPUT) for _ in range(3)), *(ask("echo", "hello") for _ in range(10))]


def check_answered(found: Sequence[Timed]) -> None:
    assert [answer.status_code for _, answer in found] == [200] * len(found)
    assert max(seconds for seconds, _ in found) < SOON_S


def check_refused(found: Sequence[Timed]) -> None:
    for _, answer in found:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert max(seconds for seconds, _ in found) < SOON_S


async def works(client: httpx.AsyncClient) -> bool:
    calls = [
        client.put("/v1/tasks/later", json={"fields": ["text"]}),
        client.get("/v1/train"),
        client.get("/v1/datasets"),
    ]
    return all(answer.status_code in (200, 201) for answer in await asyncio.gather(*calls))


async def reading(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"chorus_{name} "))


@pytest.mark.anyio
async def test_hung_redis_refuses_who_needs_it_soon_and_delays_nobody_else(
    url: str, server: RedisServer, record_property: Callable[[str, object], None]
) -> None:
    limits: Any = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=HANG_S, limits=limits) as client:
        assert await works(client)
        server.freeze()
        waiting = [asyncio.ensure_future(call) for call in needing_redis(client)]
        await asyncio.sleep(0.5)  # until they hold whatever they can hold
        check_answered(await asyncio.gather(*generates(client)))
        check_refused(await asyncio.gather(*waiting))
        assert await reading(client, "redis_circuit_opened_total") >= 1

        # open by now: but for a probe, nobody waits for Redis any more
        again = [await call for call in needing_redis(client)]
        check_refused(again)
        assert sum(seconds for seconds, _ in again) < len(again) * DEFAULT_TIMEOUT_S / 4
        check_answered(await asyncio.gather(*generates(client)))

        server.thaw()
        began = time.monotonic()
        while not await works(client):
            assert time.monotonic() - began < SOON_S
            await asyncio.sleep(0.05)
        assert await reading(client, "redis_circuit_open") == 0
    record_property("tries", len(waiting) + len(again))


def test_input_is_large_enough_for_a_thread() -> None:
    assert len(json.dumps({"input": LARGE_INPUT})) > LARGE
