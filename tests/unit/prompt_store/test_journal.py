"""Record files: sealed, replaced only by what is newer, readable whatever their writers went through."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prompt_store import CorruptRecord, InvalidName, StoreUnavailable, Task
from prompt_store.durable import TEMP_PREFIX
from prompt_store.journal import RecordFiles, TaskRecord, seal, unseal
from prompt_store.metadata import AliasEntry, Change, TaskEntry, Tombstone
from prompt_store.testing import EXAMPLE_SPEC, memory_store

ID = "0123456789abcdef" * 2


def entry(description: str = "") -> TaskEntry:
    spec = EXAMPLE_SPEC.model_copy(update={"description": description})
    return TaskEntry(task=Task(name="sentiment", id=ID, spec=spec, created_at=1.0, updated_at=1.0), base=0)


def alias(version: int) -> tuple[AliasEntry, ...]:
    return (AliasEntry(name="prod", version=version, revision=version, updated_at=1.0),)


@pytest.fixture
def records(tmp_path: Path) -> RecordFiles:
    return RecordFiles(tmp_path)


def test_write_when_read_back_is_the_same(records: RecordFiles) -> None:
    records.write(Change(epoch=3, task_id=ID, entry=entry(), aliases=alias(2)))
    journal = records.read_all()
    assert journal.tasks[ID].entry == entry()
    assert journal.aliases[ID].aliases == alias(2)
    assert (journal.epoch, records.floor(), journal.unreadable) == (3, 3, [])


def test_write_when_an_older_change_arrives_late_keeps_the_newer(records: RecordFiles) -> None:
    records.write(Change(epoch=5, task_id=ID, aliases=alias(5)))
    records.write(Change(epoch=4, task_id=ID, entry=entry(), aliases=alias(4)))
    journal = records.read_all()
    assert journal.aliases[ID].aliases == alias(5)
    assert journal.tasks[ID].entry == entry()
    assert records.floor() == 5


def test_write_when_the_task_was_deleted_meanwhile_adds_nothing(records: RecordFiles) -> None:
    tombstone = Tombstone(name="sentiment", task_id=ID, last=1, publications={"job-1": 1})
    records.write(Change(epoch=1, task_id=ID, entry=entry(), aliases=alias(1)))
    records.write(Change(epoch=3, task_id=ID, tombstone=tombstone))
    records.write(Change(epoch=2, task_id=ID, entry=entry(), aliases=alias(1)))
    journal = records.read_all()
    assert journal.tasks[ID].tombstone == tombstone
    assert (journal.aliases, journal.versions) == ({}, {})
    assert sorted(path.name for path in (Path(records.folder)).iterdir()) == ["epoch", "lock", f"task-{ID}.json"]


def test_write_when_the_disk_refuses_is_unavailable_and_leaves_the_old_record(
    records: RecordFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.write(Change(epoch=1, task_id=ID, aliases=alias(1)))

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StoreUnavailable, match="No space"):
            records.write(Change(epoch=2, task_id=ID, aliases=alias(2)))
    assert records.read_all().aliases[ID].aliases == alias(1)
    assert not [path for path in records.folder.iterdir() if path.name.startswith(TEMP_PREFIX)]


@pytest.mark.parametrize("task_id", ["", "../x", "A" * 32, "0" * 31, "0" * 32 + "\n"])
def test_write_when_the_id_is_not_the_stores_own_is_refused(records: RecordFiles, task_id: str) -> None:
    with pytest.raises(InvalidName):
        records.write(Change(epoch=1, task_id=task_id, aliases=alias(1)))


def test_any_flipped_bit_of_a_sealed_record_is_noticed() -> None:
    data = seal(TaskRecord(epoch=1, entry=entry()))
    assert unseal(data, TaskRecord) == TaskRecord(epoch=1, entry=entry())
    for place in range(0, len(data) * 8, 7):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(CorruptRecord):
            unseal(bytes(damaged), TaskRecord)


def test_damaged_files_are_named_and_the_others_read(records: RecordFiles) -> None:
    records.write(Change(epoch=1, task_id=ID, entry=entry(), aliases=alias(1)))
    (records.folder / f"task-{ID}.json").write_bytes(b"{}")
    (records.folder / "version-x-1.json").symlink_to("/etc/hostname")
    (records.folder / "README").touch()
    journal = records.read_all()
    assert journal.unreadable == [f"task-{ID}.json", "version-x-1.json"]
    assert journal.aliases[ID].aliases == alias(1)


def test_floor_when_its_file_is_damaged_refuses_until_it_is_rebuilt(tmp_path: Path) -> None:
    store = memory_store(tmp_path)
    store.put_task("sentiment", EXAMPLE_SPEC)
    (store.records.folder / "epoch").write_bytes(b"sha256:")
    with pytest.raises(CorruptRecord):
        store.put_task("topic", EXAMPLE_SPEC)
    assert store.rebuild().ok
    store.put_task("topic", EXAMPLE_SPEC)
    assert store.fsck().problems == ()
