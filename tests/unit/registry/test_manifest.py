"""The manifest's writer: the newest snapshot is on disk at the end, and not every one on the way."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from app.registry.manifest import ManifestWriter
from prompt_store import Snapshot, StoreUnavailable
from prompt_store.testing import EXAMPLE_SPEC, memory_store


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    store = memory_store(tmp_path / "store")
    store.put_task("sentiment", EXAMPLE_SPEC)
    return store.snapshot()


class CountedSaves:
    """Stands in for `Snapshot.save`; `block` holds a save until it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.epochs: list[int] = []
        self.first = threading.Event()
        save = Snapshot.save

        def counted(snapshot: Snapshot, path: Path) -> None:
            self.epochs.append(snapshot.epoch)
            save(snapshot, path)
            self.first.set()

        monkeypatch.setattr(Snapshot, "save", counted)


def test_many_changes_are_few_saves_and_the_last_is_on_disk(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = CountedSaves(monkeypatch)
    path = tmp_path / "manifest.json"
    writer = ManifestWriter(path, every_s=3600)
    writer.start()
    writer.offer(replace(snapshot, epoch=1))
    assert saves.first.wait(20)
    for epoch in range(2, 52):
        writer.offer(replace(snapshot, epoch=epoch))
        time.sleep(0.001)  # lets the writer come to it, if it wanted to
    writer.stop()
    assert saves.epochs == [1, 51]
    assert Snapshot.load(path).epoch == 51


def test_stop_when_nothing_was_offered_writes_nothing(tmp_path: Path) -> None:
    writer = ManifestWriter(tmp_path / "manifest.json")
    writer.start()
    writer.stop()
    assert not (tmp_path / "manifest.json").exists()


def test_save_that_fails_is_made_up_for_by_the_next(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def refuse(*_: object) -> None:
        failed.set()
        raise StoreUnavailable("disk full")

    writer = ManifestWriter(tmp_path / "manifest.json", every_s=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "save", refuse)
        writer.start()
        writer.offer(snapshot)
        assert failed.wait(20)
    writer.offer(snapshot)
    writer.stop()
    assert Snapshot.load(tmp_path / "manifest.json") == snapshot
