"""A prompt that several tasks have stays in the engine until the last of them is gone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from app.registry.cache import PromptCache
from app.telemetry import Metrics

DIGESTS = {("a", 1): "one", ("a", 2): "shared", ("b", 1): "shared", ("b", 2): "two"}


def version(task_id: str, number: int) -> Any:
    return SimpleNamespace(task=task_id, task_id=task_id, number=number, digest=DIGESTS[task_id, number])


def test_forget_releases_what_no_other_task_has() -> None:
    released: list[str] = []

    async def load(version: Any) -> Any:
        return SimpleNamespace(digest=version.digest, learned=None)

    async def test() -> None:
        cache = PromptCache(load, budget_bytes=1 << 20, retry_s=1, metrics=Metrics(), release=released.append)
        for key in DIGESTS:
            await cache.get(version(*key))
        cache.forget({"a"})
        assert (released, len(cache)) == (["one"], 2)
        cache.forget({"a", "gone"})
        assert released == ["one"]
        cache.forget({"b"})
        assert (sorted(released), len(cache), cache.size_bytes) == (["one", "shared", "two"], 0, 0)

    asyncio.run(test())
