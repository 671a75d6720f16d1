"""`Registry`: references to verified prompts, and the store's records, for one replica.

Reads come from the snapshot and need no store. Writes go to the store, in a thread, and are in the snapshot when they
return. A reference is resolved to one immutable version; that version is read, verified and replayed before it serves.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from app.backbone import Backbone, LoadedPrompt, load_prompt
from app.backbone.openmp import compute_alone
from app.errors import StoreDown, VersionUnavailable
from app.registry.cache import PromptCache, Refusal
from app.registry.follower import Follower
from app.registry.recency import load_recent, save_recent
from app.registry.resolved import Resolved, mode_of, weights_of
from app.registry.scrubber import Scrubber
from app.registry.targets import check_target, knows
from app.registry.warming import Warmer
from app.telemetry import Metrics
from app.telemetry.tracing import current_span, entered
from prompt_store import PromptStore, Snapshot, StoreError, VersionNotFound, parse_ref
from prompt_store.models import Alias, AliasTarget, Task, TaskSpec, Version

log = logging.getLogger(__name__)
T = TypeVar("T")
_HOST_BYTES = 128 << 20
_LOAD_THREADS = 8
_STORE_THREADS = 8


class Registry:
    """Used from one event loop. `admit` puts a loaded prompt into the engine and replays its golden outputs there;
    `release` has the engine forget one, by its digest."""

    def __init__(
        self,
        store: PromptStore,
        backbone: Backbone,
        *,
        manifest: Path,
        reconcile_s: float,
        admit: Callable[[LoadedPrompt], Awaitable[None]],
        release: Callable[[str], None],
        host_cache_bytes: int = _HOST_BYTES,
        preload: Sequence[str] = (),
        scrub_s: float = 0.0,
        metrics: Metrics | None = None,
    ) -> None:
        """`host_cache_bytes` bounds the loaded prompts; `preload` names those to load before `start` returns;
        every blob is verified once in `scrub_s` seconds, 0 never."""
        self._store = store
        self._metrics = metrics if metrics is not None else Metrics()
        self._backbone = backbone
        self._admit = admit
        # apart: who waits for the store, and those who load what is asked for
        self._threads = ThreadPoolExecutor(_LOAD_THREADS, thread_name_prefix="registry", initializer=compute_alone)
        self._store_threads = ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="registry-store")
        self._follower = Follower(store, manifest=manifest, reconcile_s=reconcile_s, changed=self._on_change)
        self._cache = PromptCache(
            self._load,
            budget_bytes=host_cache_bytes,
            retry_s=reconcile_s,
            metrics=self._metrics,
            release=release,
        )
        self._warmer = Warmer(self._cache, lambda: self.snapshot, preload=preload)
        self._scrubber = Scrubber(store, lambda: self.snapshot.versions, every_s=scrub_s)
        self._recent = manifest.with_name("recent.json")
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Know what there is and load the preload list. Works without the store if there is a manifest or the
        records can be read."""
        self._loop = asyncio.get_running_loop()
        await self._in_thread(self._follower.start)
        self._scrubber.start()
        await self._warmer.start(await self._in_thread(partial(load_recent, self._recent)))

    async def stop(self) -> None:
        await self._in_thread(self._scrubber.stop)
        await self._in_thread(self._follower.stop)
        await self._warmer.stop()
        await self._in_thread(partial(save_recent, self._recent, self._cache.by_use()))
        self._loop = None
        self._threads.shutdown(wait=False)
        self._store_threads.shutdown(wait=False)

    # state

    @property
    def degraded(self) -> bool:
        """Whether answers come from what was last known, because the store is out of reach or behind."""
        return self._follower.degraded is not None

    @property
    def degraded_code(self) -> str | None:
        return self._follower.degraded

    @property
    def known(self) -> bool:
        """Whether there is any knowledge to answer from."""
        return self._follower.known

    @property
    def snapshot(self) -> Snapshot:
        return self._follower.snapshot

    @property
    def refusals(self) -> list[Refusal]:
        return self._cache.refusals

    def readings(self) -> dict[str, float]:
        """Gauges for the metrics page."""
        snapshot = self.snapshot
        return {
            "registry_epoch": snapshot.epoch,
            "registry_degraded": float(self.degraded),
            "registry_tasks": len(snapshot.states),
            "registry_versions": sum(len(state.versions) for state in snapshot.states.values()),
            "registry_full_reads_total": self._follower.full_reads,
            "prompts_loaded": len(self._cache),
            "prompts_loaded_bytes": self._cache.size_bytes,
            "prompts_evicted_total": self._cache.evictions,
            "prompts_refused": len(self._cache.refusals),
            **self._scrubber.readings(),
        }

    # answering

    async def resolve(self, ref: str) -> Resolved:
        """The verified prompts that `ref` means now.

        Raises InvalidReference, InvalidName, TaskNotFound, VersionNotFound, AliasNotFound, VersionUnavailable, and
        StoreDown while nothing is known at all.
        """
        with entered(current_span().child("registry lookup")) as span:
            found = await self._resolve(ref)
            if span.recording:  # what is asked for is a name only once it is found: until then it is a user's text
                versions = [f"{one.task}@{one.version}" for one in found.members]
                span.set({"chorus.task": found.task.name, "chorus.versions": versions})
            return found

    async def _resolve(self, ref: str) -> Resolved:
        view, parsed = self._view(), parse_ref(ref)
        target = view.target(parsed)
        versions = [view.version(parsed.task, number) for number in target.versions]
        prompts = [await self._servable(versions[0])] if len(versions) == 1 else await self._servable_all(versions)
        return Resolved(ref, view.task(parsed.task), mode_of(target), tuple(prompts), weights_of(target))

    async def resolve_version(self, ref: str) -> LoadedPrompt:
        """The one verified prompt that `ref` means now. Raises as `resolve` does, and InvalidReference for several."""
        return await self._servable(self._view().resolve(parse_ref(ref)))

    async def _servable_all(self, versions: Sequence[Version]) -> list[LoadedPrompt]:
        """All or none: the first that cannot answer is the error, by name. Nothing falls back to the others."""
        found = await asyncio.gather(*map(self._servable, versions), return_exceptions=True)
        for outcome in found:
            if isinstance(outcome, BaseException):
                raise outcome
        return found  # type: ignore[return-value]

    async def _servable(self, version: Version) -> LoadedPrompt:
        name = f"{version.task}@{version.number}"
        if version.state == "retired":
            raise VersionNotFound(f"{name} was retired", param="task")
        if version.state == "quarantined":
            raise VersionUnavailable(f"{name} is in quarantine", param="task")
        return await self._cache.get(version)

    # reading

    def members(self, ref: str) -> list[Version]:
        """The versions that `ref` means now, whether they are served here or not. Raises as `resolve` does."""
        view, parsed = self._view(), parse_ref(ref)
        return [view.version(parsed.task, number) for number in view.target(parsed).versions]

    def task(self, name: str) -> Task:
        return self._view().task(name)

    def tasks(self, *, after: str | None, limit: int) -> tuple[list[Task], bool]:
        """Tasks by name behind `after`, and whether there are more."""
        view = self._view()
        names, more = _page(view.names, str, after, limit)
        return [view.task(name) for name in names], more

    def version(self, task: str, number: int) -> Version:
        return self._view().version(task, number)

    def versions(self, task: str, *, after: int, limit: int) -> tuple[list[Version], bool]:
        """Versions of a task by number behind `after`, and whether there are more."""
        found = list(self._view().state(task).versions.values())
        return _page(found, lambda version: version.number, after, limit)

    def alias(self, task: str, name: str) -> Alias:
        return self._view().alias(task, name)

    def aliases(self, task: str) -> list[Alias]:
        """By name, as last read: none of a task that has not been seen yet, because it was made a moment ago."""
        state = self.snapshot.states.get(task)
        return [] if state is None else list(state.aliases.values())

    # writing

    async def put_task(self, name: str, spec: TaskSpec) -> tuple[Task, bool]:
        """Create or change a task; also says whether it is new."""
        return await self._write(partial(self._store.ensure_task, name, spec))

    async def delete_task(self, name: str) -> None:
        await self._write(partial(self._store.delete_task, name))

    async def publish(self, **publication: Any) -> Version:
        """Make a version of what was checked against the backbone; arguments and errors are `PromptStore.publish`'s."""
        return (await self._write(partial(self._store.publish, **publication))).version

    async def retire_version(self, task: str, number: int) -> Version:
        return await self._write(partial(self._store.retire_version, task, number))

    async def move_alias(self, task: str, name: str, target: AliasTarget, *, expected: int | None) -> Alias:
        """Point an alias to what can answer here. Raises as `PromptStore.move_alias`, and CapabilityMissing."""
        if not knows(self._view(), task, target):
            await self.refresh()  # published a moment ago
        check_target(self._view(), task, target, self._backbone.ref)
        return await self._write(partial(self._store.move_alias, task, name, target, expected=expected))

    async def delete_alias(self, task: str, name: str, *, expected: int | None) -> None:
        await self._write(partial(self._store.delete_alias, task, name, expected=expected))

    async def refresh(self) -> None:
        """Read the store now. Raises StoreError."""
        await self._at_store(self._follower.refresh)

    # inside

    def _view(self) -> Snapshot:
        if not self._follower.known:
            raise StoreDown("the registry has not been reached yet, and no manifest or records either")
        return self._follower.snapshot

    async def _write(self, call: Callable[[], T]) -> T:
        done = await self._at_store(call)
        try:
            await self.refresh()
        except StoreError as error:  # the write itself is safe; the follower will see it
            log.warning("registry not read after a write", extra={"code": error.code})
        return done

    async def _load(self, version: Version) -> LoadedPrompt:
        facts = {"chorus.version": f"{version.task}@{version.number}", "chorus.digest": version.digest}
        with entered(current_span().child("load prompt", facts)):
            prompt = await self._in_thread(partial(self._read, version))
            await self._admit(prompt)
        return prompt

    def _read(self, version: Version) -> LoadedPrompt:
        return load_prompt(version, self._store.load(version), self._backbone)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _at_store(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._store_threads, call)

    def _on_change(self, before: Snapshot, names: frozenset[str] | None) -> None:
        """Called by whatever thread replaced the snapshot."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._note, before, names)

    def _note(self, before: Snapshot, names: frozenset[str] | None) -> None:
        self._warmer.note(before, names)
        known = self.snapshot.states
        changed = before.states.keys() if names is None else names
        self._metrics.forget_tasks(name for name in changed if name not in known)


def _page(
    items: Sequence[T], key: Callable[[T], str] | Callable[[T], int], after: str | int | None, limit: int
) -> tuple[list[T], bool]:
    """The `limit` items behind `after` of a sorted list, and whether there are more."""
    start = 0 if after is None else bisect_right(items, after, key=key)
    return list(items[start : start + limit]), start + limit < len(items)
