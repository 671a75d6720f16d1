"""Loaded prompts by (task id, number), the host's tier of residency: read from disk once, verified, kept within a
budget of bytes, at most one load of each at a time. Who holds a prompt keeps it, whatever is dropped here.

A version that cannot be loaded is refused for itself alone, and not tried again for a while, so that a hot but broken
version costs one read in `retry_s`, not one in each request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.backbone import LoadedPrompt
from app.backbone.soft_prompt import size_bytes
from app.errors import ChorusError, DeadlineExceeded, Draining, Overloaded, RequestCancelled, VersionUnavailable
from app.registry.recency import Key
from app.registry.segmented_lru import SegmentedLRU
from app.telemetry import Metrics
from prompt_store import StoreError, Version

log = logging.getLogger(__name__)
_OVERHEAD_BYTES = 2048  # of a prompt beside its vectors: template, words, their ids
_BUSY = (Overloaded, Draining, DeadlineExceeded, RequestCancelled)  # says nothing about the version


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served here, and until when that is believed."""

    version: str
    code: str
    until: float

    def error(self) -> VersionUnavailable:
        wait_s = max(1.0, self.until - time.monotonic())
        message = f"{self.version} cannot be served here: its verification failed ({self.code})"
        return VersionUnavailable(message, param="task", retry_after_s=wait_s)


class PromptCache:
    """Used from the event loop only."""

    def __init__(
        self,
        load: Callable[[Version], Awaitable[LoadedPrompt]],
        *,
        budget_bytes: int,
        retry_s: float,
        metrics: Metrics,
        release: Callable[[str], None],
    ) -> None:
        """`release` is told the digest of each loaded prompt whose tasks are all gone."""
        self._load = load
        self._release = release
        self._retry_s = retry_s
        self._metrics = metrics
        self._loaded: SegmentedLRU[Key, LoadedPrompt] = SegmentedLRU(budget_bytes)
        self._loading: dict[Key, asyncio.Task[LoadedPrompt]] = {}
        self._refused: dict[Key, Refusal] = {}

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, key: Key) -> bool:
        return key in self._loaded

    @property
    def size_bytes(self) -> int:
        return self._loaded.size_bytes

    @property
    def evictions(self) -> int:
        return self._loaded.evictions

    @property
    def full(self) -> bool:
        """Whether one more prompt, beside those being loaded, would push another one out."""
        return not self._loaded.has_room(len(self._loading) + 1)

    @property
    def refusals(self) -> list[Refusal]:
        return list(self._refused.values())

    async def get(self, version: Version) -> LoadedPrompt:
        """The prompt of `version`; raises VersionUnavailable. A caller that leaves does not end the load for others."""
        key = (version.task_id, version.number)
        loaded = self._loaded.get(key)
        if loaded is not None:
            return loaded
        refusal = self._refused.get(key)
        if refusal is not None and time.monotonic() < refusal.until:
            raise refusal.error()
        return await asyncio.shield(self._loading.get(key) or self._begin(key, version))

    def forget(self, task_ids: set[str]) -> None:
        """Drop what belongs to tasks that no longer exist, here and, where no other task has it too, in the engine."""
        dropped = self._loaded.drop([key for key in self._loaded.by_use() if key[0] in task_ids])
        if dropped:
            held = {prompt.digest for prompt in self._loaded.values()}
            for digest in {prompt.digest for prompt in dropped} - held:
                self._release(digest)
        for key in [key for key in self._refused if key[0] in task_ids]:
            del self._refused[key]

    def by_use(self) -> list[Key]:
        """What is loaded, the most used first."""
        return self._loaded.by_use()

    def _begin(self, key: Key, version: Version) -> asyncio.Task[LoadedPrompt]:
        task = asyncio.create_task(self._fill(key, version), name=f"load {version.task}@{version.number}")
        self._loading[key] = task
        task.add_done_callback(lambda done: self._end(key, done))
        return task

    def _end(self, key: Key, done: asyncio.Task[LoadedPrompt]) -> None:
        self._loading.pop(key, None)
        if not done.cancelled():
            done.exception()  # seen: whoever waits raises it, and perhaps nobody does any more

    async def _fill(self, key: Key, version: Version) -> LoadedPrompt:
        name = f"{version.task}@{version.number}"
        began = time.monotonic()
        try:
            prompt = await self._load(version)
        except _BUSY:
            raise
        except Exception as error:
            code = error.code if isinstance(error, (ChorusError, StoreError)) else "internal_error"
            log.error("version refused", extra={"version": name, "code": code}, exc_info=error)
            self._metrics.prompt_load_failures.labels(code).inc()
            refusal = self._refused[key] = Refusal(name, code, time.monotonic() + self._retry_s)
            raise refusal.error() from error
        seconds = time.monotonic() - began
        log.info("version loaded", extra={"version": name, "digest": version.digest[:12], "seconds": seconds})
        self._metrics.prompt_load_seconds.observe(seconds)
        self._refused.pop(key, None)
        self._loaded.put(key, prompt, _size(prompt))
        return prompt


def _size(prompt: LoadedPrompt) -> int:
    return _OVERHEAD_BYTES + size_bytes(prompt.learned)
