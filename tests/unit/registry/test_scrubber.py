"""Damage on the disk is found by reading, told once, and forgotten when it is mended."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.registry.scrubber import Scrubber
from prompt_store import CorruptBlob, Version
from tests.fakes import FakeBackbone, publish
from tests.registries import FragileStore, run, running, until


@pytest.fixture
def store(tmp_path: Path) -> FragileStore:
    store = FragileStore(tmp_path)
    for task in ("echo", "other"):
        publish(store, FakeBackbone(), task, "{text}")
    return store


def scrubber(store: FragileStore) -> Scrubber:
    return Scrubber(store, lambda: store.snapshot().versions, every_s=60)


def path_of(store: FragileStore, version: Version) -> Path:
    (found,) = store.blobs.root.rglob(f"{version.digest}*")
    return found


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_damaged_blob_of_a_version_is_told_once_and_counted(
    store: FragileStore, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    version = store.get_version("echo", 1)
    path = path_of(store, version)
    whole = path.read_bytes()
    scrubbing = scrubber(store)
    scrubbing.scrub(pause_s=0)
    assert scrubbing.readings() == {"registry_blobs_scrubbed_total": 2, "registry_blobs_damaged": 0}
    damage(path)
    with caplog.at_level(logging.INFO):
        scrubbing.scrub(pause_s=0)
        scrubbing.scrub(pause_s=0)
        assert [record.message for record in caplog.records] == ["a blob is damaged"]
        assert scrubbing.readings()["registry_blobs_damaged"] == 1
        path.write_bytes(whole)
        scrubbing.scrub(pause_s=0)
    assert caplog.records[-1].message == "a damaged blob is whole again"
    assert scrubbing.readings()["registry_blobs_damaged"] == 0


def test_damage_of_a_version_that_is_gone_counts_no_more(store: FragileStore) -> None:
    path_of(store, store.get_version("other", 1)).unlink()
    scrubbing = scrubber(store)
    scrubbing.scrub(pause_s=0)
    store.delete_task("other")
    scrubbing.scrub(pause_s=0)
    assert scrubbing.readings()["registry_blobs_damaged"] == 0


def test_blob_of_another_task_is_refused(store: FragileStore) -> None:
    version = store.get_version("echo", 1)
    other = store.get_version("other", 1)
    crossed = version.model_copy(update={"digest": other.digest, "size_bytes": other.size_bytes})
    with pytest.raises(CorruptBlob, match="another prompt"):
        store.load(crossed)


def test_prompt_that_is_loaded_serves_on_while_its_blob_is_damaged(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(store, tmp_path, scrub_s=0.05) as registry:
            before = await registry.resolve_version("echo")
            truncate(path_of(store, store.get_version("echo", 1)))
            await until(lambda: registry.readings()["registry_blobs_damaged"] == 1)
            assert await registry.resolve_version("echo") is before
            assert (await registry.resolve_version("other")).task == "other"

    run(test())
