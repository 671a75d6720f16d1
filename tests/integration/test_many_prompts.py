"""More prompts than any tier holds: files, the registry's cache on the host and the engine's device budgets in one,
with a real store and a small model that really runs."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI

from app.backbone import Backbone, Decoding
from app.engine import Answer, EngineConfig, EngineService
from app.registry import Registry
from tests.architectures import build_backbone
from tests.prompts import WORDS, make_prompt
from tests.real_world import RealWorld
from tests.registries import FragileStore, until

pytestmark = pytest.mark.anyio
SIZE = 6  # vectors of a prompt
VECTOR_BYTES = SIZE * 64 * 4
HOST_BYTES = VECTOR_BYTES + 2048  # what the host's cache counts for one
KV_BYTES = 2 * 3 * 2 * SIZE * 16 * 4
BRIEF = Decoding(max_tokens=4)


class Tiers:
    """The registry and the engine over a store on disk, and what they may hold."""

    def __init__(self, folder: Path, *, host: int, device: int) -> None:
        self.backbone: Backbone = build_backbone("llama")
        self.store = FragileStore(folder)
        self.host, self.device = host * HOST_BYTES, device * VECTOR_BYTES
        self.kv = max(1, device // 2) * KV_BYTES
        config = EngineConfig(
            max_rows=16, max_context=96, threads=1, prompt_cache_bytes=self.kv, prompt_vector_bytes=self.device
        )
        self.engine = EngineService(self.backbone, config)
        self.flying: Counter[int] = Counter()  # tasks that are asked for now
        self.registry = Registry(
            self.store,
            self.backbone,
            manifest=folder / "manifest.json",
            reconcile_s=60,
            admit=self.engine.admit,
            release=self.engine.release,
            host_cache_bytes=self.host,
        )

    def register(self, count: int) -> None:
        """Tasks `t0`, `t1`, … with a version each; every other one has labels."""
        world = RealWorld(FastAPI(), self.store, self.backbone)
        for i in range(count):
            world.publish(f"t{i}", f"<prompt:{SIZE}>{{text}}", words=WORDS if i % 2 else None, seed=i)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.engine.start()
        await self.registry.start()
        try:
            await until(lambda: self.registry._warmer._running is None or self.registry._warmer._running.done())
            yield
        finally:
            await self.registry.stop()
            await self.engine.stop(0)

    async def ask(self, task: int, text: str) -> Answer:
        """Through the registry's loader to the engine, as a route does."""
        prompt = await self.registry.resolve_version(f"t{task}")
        assert prompt.task == f"t{task}"
        self.flying[task] += 1
        answer = await self.engine.answer(prompt, {"text": text}, decoding=BRIEF, timeout_s=120)
        self.check_bounds()
        self.flying -= Counter([task])
        return answer

    def check_bounds(self) -> None:
        stats = self.engine.stats()
        assert self.registry.readings()["prompts_loaded_bytes"] <= self.host
        assert stats.prefix_bytes <= self.kv
        assert stats.resident_bytes <= self.device + len(self.flying) * VECTOR_BYTES  # what is needed stays

    def cached(self, task: int) -> bool:
        version = self.store.get_version(f"t{task}", 1)
        return (version.task_id, 1) in self.registry._cache

    async def alone(self, task: int, text: str) -> Answer:
        """From the vectors that were published, by an engine that nobody shares."""
        words = WORDS if task % 2 else None
        prompt = make_prompt(self.backbone, f"<prompt:{SIZE}>{{text}}", words=words, seed=task)
        service = EngineService(self.backbone, EngineConfig(max_rows=1, max_context=96, threads=1))
        await service.start()
        try:
            return await service.answer(prompt, {"text": text}, decoding=BRIEF, timeout_s=60)
        finally:
            await service.stop(0)


def same(one: Answer, other: Answer) -> None:
    assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)
    if other.scores:
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


async def test_prompts_beyond_the_hosts_budget_asked_in_turns_are_all_answered_and_each_is_read_once_at_a_time(
    tmp_path: Path,
) -> None:
    count = 24
    tiers = Tiers(tmp_path, host=8, device=4)
    tiers.register(count)
    wanted = [await tiers.alone(i, f"film {i}") for i in range(count)]
    async with tiers.running():
        tiers.store.loads.clear()
        cold = 0
        for _ in range(3):
            for i in range(count):
                missing, before = not tiers.cached(i), len(tiers.store.loads)
                for answer in await asyncio.gather(*(tiers.ask(i, f"film {i}") for _caller in range(4))):
                    same(answer, wanted[i])
                assert tiers.store.loads[before:] == [f"t{i}@1"] * missing  # one read for four callers
                cold += missing
        assert cold >= 2 * (count - 8)
        assert cold == len(tiers.store.loads)
        together = await asyncio.gather(*(tiers.ask(i, f"film {i}") for i in range(count) for _ in range(3)))
        for i in range(count):
            for answer in together[3 * i : 3 * i + 3]:
                same(answer, wanted[i])
        assert tiers.registry.readings()["prompts_evicted_total"] > count
        assert tiers.engine.stats().prefix_evictions > 0


@pytest.mark.slow
async def test_thousands_of_tasks_through_registry_and_engine_are_answered_within_small_budgets(tmp_path: Path) -> None:
    """Every task once in random order, then as many questions by Zipf's law; 64 callers at a time."""
    count = 2_000
    tiers = Tiers(tmp_path, host=100, device=20)
    tiers.register(count)
    dice = random.Random(5)
    order = dice.sample(range(count), count)
    order += dice.choices(range(count), weights=[1 / rank for rank in range(1, count + 1)], k=count)
    checked = {task: await tiers.alone(task, f"film {task}") for task in order[:40]}
    places = asyncio.Semaphore(64)

    async def one(task: int) -> None:
        async with places:
            answer = await tiers.ask(task, f"film {task}")
        assert answer.finish_reason == ("label" if task % 2 else answer.finish_reason)
        if task in checked:
            same(answer, checked[task])

    async with tiers.running():
        tiers.store.loads.clear()
        await asyncio.gather(*map(one, order))
        stats = tiers.engine.stats()
        assert sum(stats.finished.values()) >= 2 * count
        assert set(stats.finished) <= {"label", "length", "stop"}
        assert count - 100 <= len(tiers.store.loads) < 1.6 * count  # Zipf's favourites stayed
        assert stats.prefix_hits > 0
