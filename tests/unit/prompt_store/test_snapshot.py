"""The manifest on disk: whole, current and trusted, or not used."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from prompt_store import InvalidManifest, NotFound, Snapshot, StoreUnavailable, parse_ref
from prompt_store.testing import EXAMPLE_SPEC, example_meta, example_tensors, memory_store


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    store = memory_store(tmp_path / "store")
    meta = example_meta(golden=({"input": {"text": "é"}, "scores": {"positive": -0.1, "negative": -2.5}},))
    for job in range(2):
        store.publish(
            task="sentiment", meta=meta, tensors=example_tensors(meta, job), publication=f"j{job}", spec=EXAMPLE_SPEC
        )
    return store.snapshot()


def test_load_when_saved_is_the_same_without_any_server(snapshot: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "state" / "manifest"
    snapshot.save(path)
    loaded = Snapshot.load(path)
    assert loaded == snapshot
    assert loaded.resolve(parse_ref("sentiment")).number == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["manifest"]


def test_load_when_nothing_was_saved_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Snapshot.load(tmp_path / "manifest")


def test_load_when_damaged_is_refused(snapshot: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    snapshot.save(path)
    good = path.read_bytes()
    for data in (b"", good[:-1], good.replace(b'"revision":2', b'"revision":3'), good[72:]):
        path.write_bytes(data)
        with pytest.raises(InvalidManifest):
            Snapshot.load(path)
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(InvalidManifest):
        Snapshot.load(path)


def test_save_when_the_disk_refuses_keeps_the_old_manifest(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest"
    snapshot.save(path)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(StoreUnavailable):
            replace(snapshot, epoch=99).save(path)
    assert Snapshot.load(path) == snapshot
