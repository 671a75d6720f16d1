"""A replica that starts while the store is away: from its manifest, from the records beside the blobs, or not yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from app.errors import StoreDown
from prompt_store import AliasTarget, MemoryMetadata, PromptStore, StoreUnavailable, TaskSpec, keys
from prompt_store.journal import Journal
from tests.fakes import FakeBackbone, publish
from tests.registries import FragileStore, run, running, until


@pytest.fixture
def store(tmp_path: Path) -> FragileStore:
    store = FragileStore(tmp_path)
    publish(store, FakeBackbone(), "echo", "{text}")
    return store


def test_cold_start_without_the_store_answers_from_the_manifest(
    store: FragileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.records, "read_all", unreadable)

    async def test() -> None:
        async with running(store, tmp_path):
            pass
        store.down = True
        async with running(store, tmp_path) as registry:
            assert registry.degraded
            assert registry.degraded_code == "store_unavailable"
            assert (await registry.resolve_version("echo")).version == 1
            store.down = False
            await until(lambda: not registry.degraded)

    run(test())


@pytest.mark.parametrize("manifest", [None, b"rot"])
def test_cold_start_without_store_and_manifest_answers_from_the_records(
    store: FragileStore, tmp_path: Path, manifest: bytes | None
) -> None:
    publish(store, FakeBackbone(), "echo", "Again: {text}")
    own = tmp_path / "elsewhere"
    own.mkdir()
    if manifest is not None:
        (own / "manifest.json").write_bytes(manifest)

    async def test() -> None:
        store.down = True
        async with running(store, own) as registry:
            assert registry.known
            assert registry.degraded_code == "store_unavailable"
            assert (await registry.resolve_version("echo")).version == 2
            assert (await registry.resolve_version("echo@1")).version == 1

    run(test())


def test_store_that_is_back_tells_what_the_records_did_not(
    store: FragileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version whose writer died before its records, and others behind it; the stream was trimmed of its events."""
    with monkeypatch.context() as patch:
        patch.setattr(store.records, "write", lambda change: None)
        publish(store, FakeBackbone(), "echo", "Again: {text}", alias=None)
    store.move_alias("echo", "canary", 1, expected=0)
    assert isinstance(store.metadata, MemoryMetadata)
    monkeypatch.setattr(store.metadata._log, "_events", [])

    async def test() -> None:
        store.down = True
        async with running(store, tmp_path / "elsewhere") as registry:
            assert [version.number for version in registry.versions("echo", after=0, limit=9)[0]] == [1]
            store.down = False
            await until(lambda: not registry.degraded)
            assert [version.number for version in registry.versions("echo", after=0, limit=9)[0]] == [1, 2]
            assert registry.snapshot.states == store.snapshot().states

    run(test())


def test_what_the_records_told_is_never_kept_as_a_manifest(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        store.down = True
        async with running(store, tmp_path / "elsewhere") as registry:
            assert registry.known
        assert not (tmp_path / "elsewhere" / "manifest.json").exists()

    run(test())


def test_cold_start_with_nothing_in_reach_waits_for_the_records_or_the_store(
    store: FragileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        store.down = True
        with monkeypatch.context() as patch:
            patch.setattr(store.records, "read_all", unreadable)
            async with running(store, tmp_path / "one") as registry:
                assert not registry.known
                with pytest.raises(StoreDown):
                    await registry.resolve_version("echo")
                store.down = False
                await until(lambda: registry.known)
                assert (await registry.resolve_version("echo")).version == 1
        store.down = True
        with monkeypatch.context() as patch:
            patch.setattr(store.records, "read_all", unreadable)
            async with running(store, tmp_path / "other") as registry:
                assert not registry.known
                patch.undo()
                await until(lambda: registry.known)
                assert registry.degraded
                assert (await registry.resolve_version("echo")).version == 1

    run(test())


def test_store_that_lost_everything_is_no_reason_to_answer_nothing(store: FragileStore, tmp_path: Path) -> None:
    forgotten = FragileStore(tmp_path)  # an empty server over the same blobs
    forgotten.forgetful = True

    async def test() -> None:
        async with running(forgotten, tmp_path / "elsewhere") as registry:
            assert registry.degraded_code == "store_behind"
            assert (await registry.resolve_version("echo")).version == 1

    run(test())


def test_record_that_cannot_be_read_is_told_and_keeps_no_replica_from_starting(tmp_path: Path, redis_url: str) -> None:
    store = PromptStore.open(redis_url, tmp_path / "blobs")
    publish(store, FakeBackbone(), "echo", "{text}")
    store.put_task("novel", TaskSpec(fields=("text",)))

    async def test() -> None:
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            line = str(client.hget(keys.TASKS, "novel"))
            async with running(store, tmp_path) as registry:
                client.hset(keys.TASKS, "novel", line.replace('{"description"', '{"newer":1,"description"'))
                client.incr(keys.EPOCH)
                await until(lambda: registry.degraded_code == "corrupt_record")
                assert (await registry.resolve_version("echo")).version == 1
                alias = await registry.move_alias("echo", "canary", AliasTarget(version=1), expected=0)
                assert store.get_alias("echo", "canary") == alias
            async with running(store, tmp_path) as registry:
                assert registry.degraded_code == "corrupt_record"
                assert (await registry.resolve_version("echo")).version == 1
                client.hset(keys.TASKS, "novel", line)
                await until(lambda: not registry.degraded)
                assert registry.alias("echo", "canary") == alias

    run(test())


def test_failure_without_a_name_is_told_and_what_is_known_goes_on_serving(
    store: FragileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    async def test() -> None:
        async with running(store, tmp_path) as registry:
            with monkeypatch.context() as patch:
                patch.setattr(store.metadata, "delta", broken)
                store.put_task("late", TaskSpec(fields=("text",)))
                await until(lambda: registry.degraded_code == "internal_error")
            await until(lambda: not registry.degraded)
            assert "late" in registry.snapshot.states
        monkeypatch.setattr(store.metadata, "dump", broken)
        async with running(store, tmp_path) as registry:
            assert registry.degraded_code == "internal_error"
            assert (await registry.resolve_version("echo")).version == 1

    run(test())


def test_installation_in_which_nothing_was_ever_recorded_is_not_known(tmp_path: Path) -> None:
    async def test() -> None:
        fresh = FragileStore(tmp_path)
        fresh.down = True
        async with running(fresh, tmp_path) as registry:
            assert not registry.known

    run(test())


def unreadable() -> Journal:
    raise StoreUnavailable("the object store is away")
