"""A registry to test: over a store that can be out of reach, admitting to an engine that only writes down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.backbone import LoadedPrompt
from app.registry import Registry
from prompt_store import BlobStore, Delta, MemoryMetadata, PromptStore, Snapshot, StoreUnavailable, Version
from tests.fakes import FakeBackbone

HANG_S = 20.0


class FragileStore(PromptStore):
    """A store that can be out of reach, and counts how often it is read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(MemoryMetadata(), BlobStore(folder / "blobs"))
        self.down = False
        self.forgetful = False
        self.loads: list[str] = []
        self.broken: set[int] = set()

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("the server is away")

    def snapshot(self) -> Snapshot:
        self._check()
        return super().snapshot()

    def delta(self, since: Snapshot) -> Delta | None:
        self._check()
        return super().delta(since)

    def epoch(self) -> int:
        self._check()
        return super().epoch()

    def events(self, *args: Any, **kwargs: Any) -> list[Any]:
        self._check()
        return super().events(*args, **kwargs)

    def behind(self) -> bool:
        return self.forgetful

    def load(self, version: Version) -> dict[str, Any]:
        self.loads.append(f"{version.task}@{version.number}")
        if version.number in self.broken:
            self.blobs.read("0" * 64)  # raises BlobNotFound
        return super().load(version)


class Admission:
    def __init__(self) -> None:
        self.admitted: list[str] = []
        self.released: list[str] = []
        self.refuse: Exception | None = None

    async def __call__(self, prompt: LoadedPrompt) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.admitted.append(f"{prompt.task}@{prompt.version}")


@asynccontextmanager
async def running(
    store: PromptStore, folder: Path, admit: Admission | None = None, **options: Any
) -> AsyncIterator[Registry]:
    options = {"reconcile_s": 0.2, **options}
    admit = admit or Admission()
    registry = Registry(
        store,
        FakeBackbone(),
        manifest=folder / "manifest.json",
        admit=admit,
        release=admit.released.append,
        **options,  # type: ignore[arg-type]
    )
    await registry.start()
    try:
        yield registry
    finally:
        await registry.stop()


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(HANG_S):
            await test

    asyncio.run(bounded())


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - what is waited for happens on another thread
        await asyncio.sleep(0.01)
