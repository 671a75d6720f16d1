"""Starters: installed once, never over a user's task, never back after a deletion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from prompt_store import (
    AliasTarget,
    BackboneRef,
    BlobStore,
    CorruptBlob,
    CorruptRecord,
    MemoryMetadata,
    PromptMeta,
    PromptStore,
    Share,
    Task,
    TaskNotFound,
    TaskSpec,
)
from prompt_store.starters import install_starters, read_starters, write_starter

FINGERPRINT = "f" * 64
NEXT = "e" * 64


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PromptStore]:
    if request.param == "memory":
        opened = PromptStore(MemoryMetadata(), BlobStore(tmp_path / "blobs"))
    else:
        opened = PromptStore.open(request.getfixturevalue("redis_url"), tmp_path / "blobs")
    with opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one starter, made by another store."""
    return starter_for(FINGERPRINT, tmp_path / "starters")


@pytest.fixture
def next_folder(tmp_path: Path) -> Path:
    """The same starter of another backbone: what a later package brings."""
    return starter_for(NEXT, tmp_path / "next")


def starter_for(fingerprint: str, folder: Path) -> Path:
    meta = PromptMeta(
        task="mood",
        template="<prompt:2>{text}",
        bos="none",
        method={"type": "prompt_tuning"},
        backbone=BackboneRef(name="b", fingerprint=fingerprint, hidden_size=4),
        num_virtual_tokens=2,
    )
    spec = TaskSpec(fields=("text",), labels=("good", "bad"))
    maker = PromptStore(MemoryMetadata(), BlobStore(folder / "maker"))
    tensors = {"prompt": np.ones((2, 4), np.float32)}
    version = maker.publish(task="mood", meta=meta, tensors=tensors, publication="p", spec=spec).version
    write_starter(version, spec, maker.read_blob(version.digest), card=(), folder=folder)
    return folder


def prod_of(store: PromptStore) -> str:
    """The fingerprint of the backbone that the task's `prod` belongs to."""
    return store.get_version("mood", store.get_alias("mood", "prod").version).meta.backbone.fingerprint


def test_install_publishes_a_starter_once(store: PromptStore, folder: Path) -> None:
    assert install_starters(store, FINGERPRINT, folder) == ["mood"]
    assert install_starters(store, FINGERPRINT, folder) == []
    version = store.get_version("mood", store.get_alias("mood", "prod").version)
    assert version.digest == read_starters(folder)[0].publication.split("-")[-1] + version.digest[16:]
    assert store.load(version)["prompt"].shape == (2, 4)


def test_install_for_another_backbone_does_nothing(store: PromptStore, folder: Path) -> None:
    assert install_starters(store, "0" * 64, folder) == []


def test_install_leaves_a_users_task_of_the_same_name_alone(store: PromptStore, folder: Path) -> None:
    store.put_task("mood", TaskSpec(fields=("line",)))
    assert install_starters(store, FINGERPRINT, folder) == []
    assert store.get_task("mood").spec.fields == ("line",)


def test_install_after_a_deletion_does_not_bring_the_starter_back(store: PromptStore, folder: Path) -> None:
    install_starters(store, FINGERPRINT, folder)
    store.delete_task("mood")
    assert install_starters(store, FINGERPRINT, folder) == []


def test_install_that_finds_itself_second_leaves_prod_where_it_was_moved_meanwhile(
    store: PromptStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replicas start at once, and both see no task."""
    install_starters(store, FINGERPRINT, folder)
    meta = store.get_version("mood", 1).meta
    tensors = {"prompt": np.zeros((2, 4), np.float32)}
    store.publish(task="mood", meta=meta, tensors=tensors, publication="mine", alias="prod")

    def unseen(name: str) -> Task:
        raise TaskNotFound(f"no task {name}")

    monkeypatch.setattr(store, "get_task", unseen)
    assert install_starters(store, FINGERPRINT, folder) == []
    assert store.get_alias("mood", "prod").version == 2


def test_install_for_the_next_backbone_takes_the_place_of_the_starter_that_cannot_answer_there(
    store: PromptStore, folder: Path, next_folder: Path
) -> None:
    install_starters(store, FINGERPRINT, folder)
    assert install_starters(store, NEXT, next_folder) == ["mood"]
    assert prod_of(store) == NEXT
    assert install_starters(store, NEXT, next_folder) == []
    assert [version.number for version in store.list_versions("mood")[0]] == [1, 2]


def test_install_when_the_package_goes_back_points_to_the_first_starter_again(
    store: PromptStore, folder: Path, next_folder: Path
) -> None:
    install_starters(store, FINGERPRINT, folder)
    install_starters(store, NEXT, next_folder)
    assert install_starters(store, FINGERPRINT, folder) == ["mood"]
    assert store.get_alias("mood", "prod").version == 1
    assert len(store.list_versions("mood")[0]) == 2


def test_install_for_the_next_backbone_leaves_a_users_version_in_its_place(
    store: PromptStore, folder: Path, next_folder: Path
) -> None:
    install_starters(store, FINGERPRINT, folder)
    meta = store.get_version("mood", 1).meta
    tensors = {"prompt": np.zeros((2, 4), np.float32)}
    store.publish(task="mood", meta=meta, tensors=tensors, publication="mine", alias="prod")
    assert install_starters(store, NEXT, next_folder) == []
    assert store.get_alias("mood", "prod").version == 2


def test_install_for_the_next_backbone_leaves_a_task_alone_whose_fields_a_user_changed(
    store: PromptStore, folder: Path, next_folder: Path
) -> None:
    install_starters(store, FINGERPRINT, folder)
    store.put_task("mood", TaskSpec(fields=("text", "place"), labels=("good", "bad")))
    assert install_starters(store, NEXT, next_folder) == []
    assert prod_of(store) == FINGERPRINT


def test_install_for_the_next_backbone_leaves_a_split_and_a_task_without_prod_alone(
    store: PromptStore, folder: Path, next_folder: Path
) -> None:
    install_starters(store, FINGERPRINT, folder)
    store.publish(
        task="mood",
        meta=store.get_version("mood", 1).meta,
        tensors={"prompt": np.zeros((2, 4), np.float32)},
        publication="mine",
        alias=None,
    )
    shares = (Share(version=1, weight=0.5), Share(version=2, weight=0.5))
    store.move_alias("mood", "prod", AliasTarget(split=shares), expected=None)
    assert install_starters(store, NEXT, next_folder) == []
    store.delete_alias("mood", "prod", expected=None)
    assert install_starters(store, NEXT, next_folder) == []
    assert store.list_aliases("mood") == []


def test_install_when_the_package_goes_back_leaves_a_retired_starter_retired(
    store: PromptStore, folder: Path, next_folder: Path
) -> None:
    install_starters(store, FINGERPRINT, folder)
    install_starters(store, NEXT, next_folder)
    store.retire_version("mood", 1)
    assert install_starters(store, FINGERPRINT, folder) == []
    assert prod_of(store) == NEXT


def test_read_of_a_damaged_starter_raises(folder: Path) -> None:
    blob = folder / "mood.safetensors"
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptBlob, match="damaged"):
        read_starters(folder)


@pytest.mark.parametrize(
    "text", ["", '{"sha256": "0', "[1]", "{}", '{"sha256": 1, "spec": {}, "card": []}', "\x00\ud800", None]
)
def test_read_of_a_starter_whose_files_are_not_whole_raises(folder: Path, text: str | None) -> None:
    if text is None:
        (folder / "mood.safetensors").unlink()
    else:
        (folder / "mood.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CorruptRecord, match="mood"):
        read_starters(folder)
