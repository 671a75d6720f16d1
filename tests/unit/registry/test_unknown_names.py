"""Names that nobody registered cost nothing: neither memory nor a call to the store."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

from app.registry import Registry
from prompt_store import TaskNotFound
from tests.fakes import FakeBackbone, publish
from tests.registries import FragileStore, run, running

NAMES = 100_000
MOST_BYTES = 512 << 10  # five bytes a name would show; the registry's own thread may be reading meanwhile


def test_flood_of_unknown_names_keeps_no_memory_and_asks_nobody(tmp_path: Path) -> None:
    store = FragileStore(tmp_path)
    publish(store, FakeBackbone(), "echo", "{text}")

    async def test() -> None:
        async with running(store, tmp_path, reconcile_s=60) as registry:
            await registry.resolve_version("echo")
            store.down = True  # whoever asks it now fails
            loads = len(store.loads)
            await flood(registry, "warm", 1000)
            gc.collect()
            tracemalloc.start()
            await flood(registry, "name", NAMES)
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert kept < MOST_BYTES
            assert len(store.loads) == loads
            assert (await registry.resolve_version("echo")).version == 1

    run(test())


async def flood(registry: Registry, name: str, count: int) -> None:
    refused = 0
    for number in range(count):
        try:
            await registry.resolve(f"{name}-{number}")
        except TaskNotFound:
            refused += 1
    assert refused == count
