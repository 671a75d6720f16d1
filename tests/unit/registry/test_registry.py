"""The registry over an in-memory store: what it knows, when it knows it, and what it does without the store."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.errors import EngineFailure, Overloaded, VersionUnavailable
from app.telemetry import Metrics
from prompt_store import (
    AliasTarget,
    RevisionMismatch,
    TaskNotFound,
    TaskSpec,
    VersionNotFound,
)
from tests.fakes import FakeBackbone, publish
from tests.registries import Admission, FragileStore, run, running, until


@pytest.fixture
def store(tmp_path: Path) -> FragileStore:
    store = FragileStore(tmp_path)
    publish(store, FakeBackbone(), "echo", "{text}")
    return store


def test_reference_resolves_to_a_verified_prompt(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(store, tmp_path) as registry:
            prompt = await registry.resolve_version("echo")
            assert (prompt.task, prompt.version, prompt.template.source) == ("echo", 1, "{text}")
            assert prompt.digest == store.get_version("echo", 1).digest
            resolved = await registry.resolve("echo")
            assert (resolved.ref, resolved.mode, resolved.weights) == ("echo", "version", (1.0,))
            assert resolved.members == (prompt,)
            assert resolved.task == store.get_task("echo")

    run(test())


def test_unknown_task_is_not_found(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(store, tmp_path) as registry:
            with pytest.raises(TaskNotFound):
                await registry.resolve_version("nothing")

    run(test())


def test_move_made_elsewhere_is_seen_within_a_second(store: FragileStore, tmp_path: Path) -> None:
    publish(store, FakeBackbone(), "echo", "Again: {text}", alias=None)

    async def test() -> None:
        async with running(store, tmp_path, reconcile_s=60) as registry:
            assert (await registry.resolve_version("echo")).version == 1
            began = time.monotonic()
            await asyncio.to_thread(partial(store.move_alias, "echo", "prod", 2, expected=None))
            await until(lambda: registry.alias("echo", "prod").version == 2)
            assert time.monotonic() - began < 1
            assert (await registry.resolve_version("echo")).version == 2

    run(test())


def test_change_without_an_event_is_seen_by_its_epoch(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(store, tmp_path) as registry:
            store.metadata.events = lambda *args, **kwargs: time.sleep(0.01) or []  # type: ignore[method-assign]
            await asyncio.to_thread(store.put_task, "late", TaskSpec(fields=("text",)))
            await until(lambda: "late" in {task.name for task in registry.snapshot.tasks})

    run(test())


def test_writes_are_read_back_at_once(store: FragileStore, tmp_path: Path) -> None:
    publish(store, FakeBackbone(), "echo", "Again: {text}", alias=None)

    async def test() -> None:
        async with running(store, tmp_path, reconcile_s=60) as registry:
            task, created = await registry.put_task("new", TaskSpec(fields=("text",)))
            assert (registry.task("new"), created) == (task, True)
            assert await registry.put_task("new", TaskSpec(fields=("text",))) == (task, False)
            assert (await registry.put_task("new", TaskSpec(fields=("text",), description="x")))[1] is False
            alias = await registry.move_alias("echo", "canary", AliasTarget(version=2), expected=0)
            assert registry.alias("echo", "canary") == alias
            with pytest.raises(RevisionMismatch):
                await registry.move_alias("echo", "canary", AliasTarget(version=1), expected=alias.revision + 1)
            await registry.delete_alias("echo", "canary", expected=alias.revision)
            assert [one.name for one in registry.aliases("echo")] == ["prod"]
            assert (await registry.retire_version("echo", 2)).state == "retired"
            assert registry.version("echo", 2).state == "retired"
            await registry.delete_task("new")
            with pytest.raises(TaskNotFound):
                registry.task("new")

    run(test())


def test_task_deleted_elsewhere_leaves_no_series(store: FragileStore, tmp_path: Path) -> None:
    publish(store, FakeBackbone(), "brief", "{text}")
    metrics = Metrics()
    for name in ("brief", "echo"):
        metrics.rows.labels(metrics.task_label(name), "stop").inc()

    async def test() -> None:
        async with running(store, tmp_path, metrics=metrics) as registry:
            store.delete_task("brief")
            await until(lambda: "brief" not in registry.snapshot.states)
            await until(lambda: b'task="brief"' not in metrics.exposition())
            assert b'task="echo"' in metrics.exposition()

    run(test())


def test_many_first_requests_for_a_cold_version_load_it_once(store: FragileStore, tmp_path: Path) -> None:
    publish(store, FakeBackbone(), "echo", "Again: {text}", alias=None)

    async def test() -> None:
        async with running(store, tmp_path) as registry:
            prompts = await asyncio.gather(*(registry.resolve_version("echo@2") for _ in range(1000)))
            assert len({id(prompt) for prompt in prompts}) == 1
            assert store.loads.count("echo@2") == 1

    run(test())


def test_caller_that_leaves_does_not_end_the_load_for_others(store: FragileStore, tmp_path: Path) -> None:
    publish(store, FakeBackbone(), "echo", "Again: {text}", alias=None)

    async def test() -> None:
        async with running(store, tmp_path) as registry:
            leaving, staying = (asyncio.create_task(registry.resolve_version("echo@2")) for _ in range(2))
            await asyncio.sleep(0)
            leaving.cancel()
            assert (await staying).version == 2
            assert store.loads.count("echo@2") == 1

    run(test())


def test_what_aliases_point_to_is_loaded_before_anybody_asks(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        admit = Admission()
        async with running(store, tmp_path, admit) as registry:
            assert admit.admitted == ["echo@1"]
            await asyncio.to_thread(publish, store, FakeBackbone(), "echo", "Again: {text}")
            await until(lambda: "echo@2" in admit.admitted)
            await registry.resolve_version("echo")
            assert admit.admitted.count("echo@2") == 1

    run(test())


def test_version_that_fails_verification_is_refused_alone(store: FragileStore, tmp_path: Path) -> None:
    publish(store, FakeBackbone(), "echo", "Again: {text}", alias="broken")
    store.broken.add(2)

    async def test() -> None:
        async with running(store, tmp_path, reconcile_s=60) as registry:
            for _ in range(20):
                with pytest.raises(VersionUnavailable, match="echo@2 cannot be served here"):
                    await registry.resolve_version("echo:broken")
            assert store.loads.count("echo@2") == 1
            assert [(one.version, one.code) for one in registry.refusals] == [("echo@2", "blob_not_found")]
            assert (await registry.resolve_version("echo")).version == 1

    run(test())


def test_refused_version_is_tried_again_after_a_while(store: FragileStore, tmp_path: Path) -> None:
    store.broken.add(1)

    async def test() -> None:
        async with running(store, tmp_path, reconcile_s=0.05) as registry:
            with pytest.raises(VersionUnavailable):
                await registry.resolve_version("echo")
            store.broken.clear()
            await asyncio.sleep(0.06)
            assert (await registry.resolve_version("echo")).version == 1
            assert registry.refusals == []

    run(test())


def test_golden_replay_that_fails_refuses_the_version(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        admit = Admission()
        admit.refuse = EngineFailure("golden outputs differ")
        async with running(store, tmp_path, admit) as registry:
            with pytest.raises(VersionUnavailable):
                await registry.resolve_version("echo")

    run(test())


def test_busy_engine_is_not_held_against_the_version(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        admit = Admission()
        admit.refuse = Overloaded("full")
        async with running(store, tmp_path, admit, reconcile_s=60) as registry:
            with pytest.raises(Overloaded):
                await registry.resolve_version("echo")
            admit.refuse = None
            assert (await registry.resolve_version("echo")).version == 1

    run(test())


@pytest.mark.parametrize(("state", "error"), [("retired", VersionNotFound), ("quarantined", VersionUnavailable)])
def test_version_out_of_service_does_not_answer(
    store: FragileStore, tmp_path: Path, state: Any, error: type[Exception]
) -> None:
    publish(store, FakeBackbone(), "echo", "Again: {text}", alias=None)
    store.set_state("echo", 2, state)

    async def test() -> None:
        async with running(store, tmp_path) as registry:
            with pytest.raises(error):
                await registry.resolve_version("echo@2")

    run(test())


def test_least_used_prompts_are_dropped_first(store: FragileStore, tmp_path: Path) -> None:
    for _ in range(3):
        publish(store, FakeBackbone(), "echo", "Again: {text}", alias=None)

    async def test() -> None:
        async with running(store, tmp_path, host_cache_bytes=2 * 2048) as registry:  # two prompts without vectors
            for ref in ("echo@1", "echo@2", "echo@1", "echo@3", "echo@1", "echo@2"):
                await registry.resolve_version(ref)
            assert store.loads == ["echo@1", "echo@2", "echo@3", "echo@2"]

    run(test())


def test_store_that_goes_away_degrades_and_answers_go_on(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(store, tmp_path) as registry:
            store.down = True
            await until(lambda: registry.degraded)
            assert (await registry.resolve_version("echo")).version == 1
            store.down = False
            await until(lambda: not registry.degraded)

    run(test())


def test_store_that_forgot_what_its_files_hold_does_not_replace_what_is_known(
    store: FragileStore, tmp_path: Path
) -> None:
    async def test() -> None:
        async with running(store, tmp_path):
            pass
        forgotten = FragileStore(tmp_path)  # an empty server over the same blobs
        forgotten.forgetful = True
        async with running(forgotten, tmp_path) as registry:
            assert registry.degraded_code == "store_behind"
            assert (await registry.resolve_version("echo")).version == 1

    run(test())


def test_pages_end_where_they_should(store: FragileStore, tmp_path: Path) -> None:
    for name in ("alpha", "beta", "gamma"):
        store.put_task(name, TaskSpec(fields=("text",)))

    async def test() -> None:
        async with running(store, tmp_path) as registry:
            names = [task.name for task in registry.tasks(after="alpha", limit=2)[0]]
            assert names == ["beta", "echo"]
            assert registry.tasks(after="beta", limit=2)[1] is False
            assert registry.tasks(after=None, limit=2)[1] is True
            assert registry.tasks(after="zzz", limit=2) == ([], False)
            assert [version.number for version in registry.versions("echo", after=0, limit=5)[0]] == [1]
            with pytest.raises(TaskNotFound):
                registry.versions("nothing", after=0, limit=5)

    run(test())


def test_new_task_of_a_deleted_name_never_answers_with_the_old_prompt(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(store, tmp_path) as registry:
            await registry.resolve_version("echo")
            await registry.delete_task("echo")
            with pytest.raises(TaskNotFound):
                await registry.resolve_version("echo")
            await asyncio.to_thread(publish, store, FakeBackbone(), "echo", "New: {text}")
            await registry.refresh()
            assert (await registry.resolve_version("echo")).template.source == "New: {text}"

    run(test())
