"""Replicas over one real server: they agree within a second, after a trimmed stream too, and start while it is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import redis

from app.registry import Registry
from prompt_store import PromptStore, StoreUnavailable
from tests.fakes import FakeBackbone, publish
from tests.registries import Admission, run, running, until

TASKS = 30


@pytest.fixture
def writer(redis_url: str, tmp_path: Path) -> Iterator[PromptStore]:
    """A store of somebody else: a worker, an administrator."""
    with PromptStore.open(redis_url, tmp_path / "blobs") as store:
        yield store


@asynccontextmanager
async def replicas(redis_url: str, folder: Path, count: int = 2) -> AsyncIterator[list[Registry]]:
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            store = PromptStore.open(redis_url, folder / "blobs")
            stack.callback(store.close)
            home = folder / f"replica-{number}"
            # so rare a comparison of epochs that only events can bring the news in time
            found.append(await stack.enter_async_context(running(store, home, Admission(), reconcile_s=3600)))
        yield found


def fill(store: PromptStore) -> None:
    for number in range(TASKS):
        publish(store, FakeBackbone(), f"task-{number}", "{text}")


def answering(registry: Registry, task: str) -> int:
    return registry.members(task)[0].number


def test_every_replica_answers_with_a_moved_alias_within_a_second(
    writer: PromptStore, redis_url: str, tmp_path: Path
) -> None:
    fill(writer)

    async def test() -> None:
        async with replicas(redis_url, tmp_path) as (one, other):
            for number in range(10):
                task = f"task-{number}"
                await asyncio.to_thread(publish, writer, FakeBackbone(), task, "Again: {text}")
                began = time.monotonic()
                await until(lambda task=task: answering(one, task) == answering(other, task) == 2)
                assert time.monotonic() - began < 1
            assert [(await replica.resolve_version("task-3")).version for replica in (one, other)] == [2, 2]
            assert [replica.readings()["registry_full_reads_total"] for replica in (one, other)] == [1, 1]

    run(test())


def test_replicas_that_write_at_once_end_with_the_same_registry(
    writer: PromptStore, redis_url: str, tmp_path: Path
) -> None:
    fill(writer)

    async def test() -> None:
        async with replicas(redis_url, tmp_path) as both:
            for task in ("task-1", "task-2", "task-1"):
                await asyncio.gather(
                    asyncio.to_thread(publish, writer, FakeBackbone(), task, "Again: {text}"),
                    *(replica.delete_task(f"task-{20 + n}") for n, replica in enumerate(both) if task == "task-2"),
                )
            await until(lambda: all(replica.snapshot.epoch == writer.epoch() for replica in both))
            truth = writer.snapshot()
            assert all(replica.snapshot == truth for replica in both)

    run(test())


def test_replica_that_missed_more_than_the_stream_keeps_reads_everything(
    writer: PromptStore, redis_url: str, tmp_path: Path
) -> None:
    fill(writer)

    async def test() -> None:
        async with replicas(redis_url, tmp_path, count=1) as (replica,):
            with redis.Redis.from_url(redis_url) as client, client.pipeline(transaction=True) as pipe:
                pipe.hset("chorus:states", f"{replica.task('task-7').id}:1", "retired")
                pipe.incr("chorus:epoch")
                pipe.xtrim("chorus:events", maxlen=0, approximate=False)
                pipe.execute()
            await asyncio.to_thread(publish, writer, FakeBackbone(), "task-1", "Again: {text}")
            await until(lambda: answering(replica, "task-1") == 2)
            assert replica.version("task-7", 1).state == "retired"
            assert replica.readings()["registry_full_reads_total"] == 2
            assert replica.snapshot == writer.snapshot()

    run(test())


def test_replica_that_starts_while_the_server_is_away_answers_as_it_did_last(
    writer: PromptStore, redis_url: str, tmp_path: Path
) -> None:
    fill(writer)

    async def test() -> None:
        async with replicas(redis_url, tmp_path, count=1) as (replica,):
            await asyncio.to_thread(publish, writer, FakeBackbone(), "task-5", "Again: {text}")
            await until(lambda: answering(replica, "task-5") == 2)
            known = replica.snapshot
        async with replicas(f"unix://{tmp_path}/nobody", tmp_path, count=1) as (replica,):
            assert replica.degraded_code == StoreUnavailable.code
            assert replica.snapshot == known
            assert (await replica.resolve_version("task-5")).version == 2

    run(test())
