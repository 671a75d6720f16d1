"""Loads prompts before somebody asks for them: the preload list first, then what aliases point to, the most recently
used first, as far as the host's budget goes.

Only the preload list keeps a replica from being ready. The rest is loaded behind its back, at most half of the time, so
that ten thousand golden replays neither delay a start nor push requests aside.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from app.errors import ChorusError
from app.registry.cache import PromptCache
from app.registry.recency import Key
from prompt_store import PromptRef, Snapshot, StoreError, TaskState, Version, parse_ref
from prompt_store.models import PROD

log = logging.getLogger(__name__)
EVERYTHING = "*"
_PATIENCE_S = 2.0  # how long readiness waits for what nobody listed: a small registry is warm by then
_LONGEST_PAUSE_S = 1.0
_TOGETHER = 4  # loads at once: the golden rows of one are too few to fill a batch


class Warmer:
    """Used from one event loop. `view` gives the snapshot of now."""

    def __init__(self, cache: PromptCache, view: Callable[[], Snapshot], *, preload: Sequence[str] = ()) -> None:
        self._cache, self._view, self._preload = cache, view, preload
        self._urgent: deque[tuple[str, int]] = deque()  # (task, number)
        self._backlog: deque[tuple[str, int]] = deque()
        self._recent: dict[Key, int] = {}
        self._running: asyncio.Task[None] | None = None
        self._started = False

    async def start(self, recent: Sequence[Key]) -> None:
        """Load the preload list and begin with the rest, `recent` first; returns when the replica may be ready."""
        self._recent = {key: place for place, key in enumerate(recent)}
        self._sort_backlog()
        if EVERYTHING in self._preload:
            await self._together(self._drain(pause=False) for _ in range(_TOGETHER))
        else:
            listed = iter([version for ref in self._preload for version in self._listed(ref)])
            await self._together(self._load_all(listed) for _ in range(_TOGETHER))
        self._started = True
        self._go_on()
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=_PATIENCE_S)

    async def stop(self) -> None:
        self._started = False
        if self._running is not None and not self._running.done():
            self._running.cancel()
            await asyncio.wait({self._running})

    def note(self, before: Snapshot, names: Iterable[str] | None) -> None:
        """The snapshot has moved on from `before`; `names`: the tasks that may differ, None: any may.

        An alias that leaves a loaded version takes its place in the cache along: its new one is loaded at once. What
        is new here waits its turn, and is left for its first request when the budget is used up.
        """
        now = self._view()
        dead: set[str] = set()
        for name in now.states.keys() | before.states.keys() if names is None else names:
            old, new = before.states.get(name), now.states.get(name)
            if old is not None and (new is None or new.task.id != old.task.id):
                dead.add(old.task.id)
                old = None
            if new is not None:
                self._queue(old, new)
        if dead:
            self._cache.forget(dead)
        if names is None:
            self._sort_backlog()
        if self._started:
            self._go_on()

    def _queue(self, old: TaskState | None, new: TaskState) -> None:
        known = _targets(old) if old is not None else set()
        fresh = _targets(new) - known
        if fresh:
            hot = any((new.task.id, number) in self._cache for number in known)
            (self._urgent if hot else self._backlog).extend((new.task.name, number) for number in sorted(fresh))

    def _sort_backlog(self) -> None:
        states, last = self._view().states, len(self._recent)

        def place(item: tuple[str, int]) -> tuple[int, str]:
            state = states.get(item[0])
            return last if state is None else self._recent.get((state.task.id, item[1]), last), item[0]

        self._backlog = deque(sorted(self._backlog, key=place))

    def _go_on(self) -> None:
        if (self._urgent or self._backlog) and (self._running is None or self._running.done()):
            self._running = asyncio.get_running_loop().create_task(self._drain(pause=True), name="warm prompts")

    async def _drain(self, *, pause: bool) -> None:
        hurry_until = time.monotonic() + _PATIENCE_S
        while self._urgent or self._backlog:
            urgent = bool(self._urgent)
            name, number = self._urgent.popleft() if urgent else self._backlog.popleft()
            if not urgent and self._cache.full:
                self._backlog.clear()
                continue
            state = self._view().states.get(name)
            version = state.versions.get(number) if state is not None else None
            if version is None or (version.task_id, number) in self._cache:
                continue
            began = time.monotonic()
            await self._load(version)
            if pause and not urgent and time.monotonic() > hurry_until:
                await asyncio.sleep(min(_LONGEST_PAUSE_S, time.monotonic() - began))

    def _listed(self, ref: str) -> list[Version]:
        """The versions that an entry of the preload list means; it may name what is not here yet."""
        try:
            view, parsed = self._view(), parse_ref(ref)
            return [view.version(parsed.task, number) for number in _numbers(view, parsed)]
        except StoreError as error:
            log.warning("preload: no such prompt", extra={"ref": ref, "code": error.code})
            return []

    async def _load_all(self, versions: Iterable[Version]) -> None:
        for version in versions:
            await self._load(version)

    async def _load(self, version: Version) -> None:
        """Refused for itself alone, and logged where it was."""
        if version.state in ("retired", "quarantined"):
            return
        try:
            await self._cache.get(version)
        except (ChorusError, StoreError) as error:
            log.debug("not warmed", extra={"version": f"{version.task}@{version.number}", "code": error.code})

    async def _together(self, work: Iterable[object]) -> None:
        await asyncio.gather(*work)  # type: ignore[call-overload]


def _targets(state: TaskState) -> set[int]:
    return {number for alias in state.aliases.values() for number in alias.versions}


def _numbers(view: Snapshot, ref: PromptRef) -> Sequence[int]:
    return (ref.version,) if ref.version is not None else view.alias(ref.task, ref.alias or PROD).versions
