"""The record files beside the blobs: what the metadata server would have to be told to become what it was.

    <root>/records/task-<id>.json             one task, or what is left of a deleted one
    <root>/records/version-<id>-<number>.json   one version with its state and card
    <root>/records/aliases-<id>.json           all aliases of one task
    <root>/records/epoch                       the highest epoch ever recorded

Each file is the latest state of its subject, stamped with the epoch of the change, sealed with a sha256 and flushed
before a write is acknowledged. A file is replaced only by a later epoch, under a lock, so writers may arrive in any
order. Task ids are the store's own hex strings: no user's string is part of a path.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from prompt_store.durable import (
    TEMP_PREFIX,
    NotRegular,
    TooLong,
    locked,
    make_folder,
    place_file,
    read_file,
    storage_errors,
    sync_folder,
)
from prompt_store.errors import CorruptRecord, InvalidName
from prompt_store.metadata import AliasEntry, Change, TaskEntry, Tombstone
from prompt_store.models import Record, Version

_TASK_ID = re.compile(r"[0-9a-f]{32}")
_SEAL = re.compile(rb"sha256:([0-9a-f]{64})\n")
MAX_RECORD_BYTES = 64 << 20
SUFFIX = ".json"

AnyRecord = TypeVar("AnyRecord", bound="Stamped")


class Stamped(Record):
    """A record with the epoch of the change that wrote it."""

    epoch: int = Field(ge=0)


class TaskRecord(Stamped):
    """A task, or its tombstone: exactly one of the two."""

    entry: TaskEntry | None = None
    tombstone: Tombstone | None = None


class VersionRecord(Stamped):
    version: Version


class AliasesRecord(Stamped):
    task_id: str
    aliases: tuple[AliasEntry, ...]


class EpochRecord(Stamped):
    pass


@dataclass
class Journal:
    """Everything the records say. `unreadable` has the names, as they lie there, of those that cannot be trusted."""

    epoch: int = 0
    tasks: dict[str, TaskRecord] = field(default_factory=dict)  # by task id, as are the others
    versions: dict[tuple[str, int], VersionRecord] = field(default_factory=dict)
    aliases: dict[str, AliasesRecord] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def has_unreadable_version(self, task_id: str, number: int) -> bool:
        """Whether the record of this version is there, but cannot be trusted."""
        subject = _version_subject(task_id, number)
        return any(name.removesuffix(SUFFIX) == subject for name in self.unreadable)


def seal(record: Record) -> bytes:
    """The record as JSON, sealed."""
    return sealed(record.model_dump_json().encode())


def sealed(text: bytes) -> bytes:
    """JSON behind a line with its sha256, so that a flipped bit is noticed."""
    return b"sha256:" + hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def unseal(data: bytes, kind: type[AnyRecord]) -> AnyRecord:
    """The record in `data`; raises CorruptRecord when the seal or the record is broken."""
    text = unsealed(data)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise CorruptRecord(f"not a {kind.__name__}") from error


def unsealed(data: bytes) -> bytes:
    """The JSON behind a good seal; raises CorruptRecord."""
    match = _SEAL.match(data)
    text = data[match.end() :] if match else b""
    if match is None or hashlib.sha256(text).hexdigest().encode() != match[1]:
        raise CorruptRecord("the seal of the file does not fit its content")
    return text


class RecordFiles:
    """The folder of record files. Safe to use from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "records"
        with storage_errors("record files"):
            make_folder(self.folder)

    def floor(self) -> int:
        """The highest epoch ever recorded here. Raises CorruptRecord, StoreUnavailable."""
        record = self._read("epoch", EpochRecord)
        return 0 if record is None else record.epoch

    def write(self, change: Change) -> None:
        """Make `change` durable; returns when a crash can no longer undo it."""
        with storage_errors("record files"), locked(self.folder / "lock", exclusive=True):
            for subject, record in news_of(change, self._readable(task_subject(change) + SUFFIX, TaskRecord)):
                self._replace(subject + SUFFIX, record)
            if change.tombstone is not None:
                self._remove_parts(change.task_id)
            self._replace("epoch", EpochRecord(epoch=change.epoch))
            sync_folder(self.folder)

    def raise_floor(self, epoch: int) -> None:
        """Record that the server has reached `epoch`."""
        with storage_errors("record files"), locked(self.folder / "lock", exclusive=True):
            self._replace("epoch", EpochRecord(epoch=epoch))
            sync_folder(self.folder)

    def _replace(self, name: str, record: Stamped) -> None:
        present = self._readable(name, type(record))
        if present is None or present.epoch < record.epoch:
            place_file(self.folder / name, seal(record))

    def _readable(self, name: str, kind: type[AnyRecord]) -> AnyRecord | None:
        try:
            return self._read(name, kind)
        except CorruptRecord:
            return None

    def _remove_parts(self, task_id: str) -> None:
        """Versions and aliases of a deleted task: they may quote users' texts, so they go with it."""
        prefixes = (f"version-{checked_id(task_id)}-", f"aliases-{task_id}.")
        for name in os.listdir(self.folder):
            if name.startswith(prefixes):
                with suppress(FileNotFoundError):
                    os.unlink(self.folder / name)

    def _read(self, name: str, kind: type[AnyRecord]) -> AnyRecord | None:
        with storage_errors("record files"):
            try:
                data = read_file(self.folder / name, limit=MAX_RECORD_BYTES)
            except FileNotFoundError:
                return None
            except (NotRegular, TooLong) as error:
                raise CorruptRecord(f"record file {name}: {error.strerror}") from None
        return unseal(data, kind)

    def read_all(self) -> Journal:
        """Every record file. Versions and aliases of deleted tasks are left out."""
        journal = Journal()
        with storage_errors("record files"):
            names = sorted(os.listdir(self.folder))
        for name in names:
            kind = kind_of(name.removesuffix(SUFFIX))
            try:
                record = None if kind is None else self._read(name, kind)
                if record is not None:
                    collect_record(journal, record)
            except CorruptRecord:
                journal.unreadable.append(name)
        return without_buried(journal)

    def purge_temporaries(self) -> None:
        """Delete temporary files left by writers that were killed: the lock says that no writer is alive."""
        with storage_errors("record files"), locked(self.folder / "lock", exclusive=True):
            for name in os.listdir(self.folder):
                if name.startswith(TEMP_PREFIX):
                    os.unlink(self.folder / name)


def kind_of(subject: str) -> type[Stamped] | None:
    """What is kept under a name without its ending; None for names that are not ours."""
    if subject == "epoch":
        return EpochRecord
    kinds: dict[str, type[Stamped]] = {"task": TaskRecord, "version": VersionRecord, "aliases": AliasesRecord}
    prefix, dash, _ = subject.partition("-")
    return kinds.get(prefix) if dash else None


def collect_record(journal: Journal, record: Stamped) -> None:
    """Add a record that was read. Raises CorruptRecord for a task record without a task."""
    if isinstance(record, TaskRecord):
        journal.tasks[_subject(record)] = record
    elif isinstance(record, VersionRecord):
        journal.versions[record.version.task_id, record.version.number] = record
    elif isinstance(record, AliasesRecord):
        journal.aliases[record.task_id] = record
    journal.epoch = max(journal.epoch, record.epoch)


def without_buried(journal: Journal) -> Journal:
    """Leaves out versions and aliases of deleted tasks."""
    buried = {task_id for task_id, record in journal.tasks.items() if record.tombstone is not None}
    journal.versions = {key: record for key, record in journal.versions.items() if key[0] not in buried}
    journal.aliases = {key: record for key, record in journal.aliases.items() if key not in buried}
    return journal


def news_of(change: Change, task: TaskRecord | None) -> Iterator[tuple[str, Stamped]]:
    """What `change` adds to the records, by subject; `task`: the record of its task, if there is a readable one.

    Nothing where the task was deleted meanwhile. A change of versions reads its task, but leaves it as it was. Raises
    InvalidName.
    """
    if is_buried(task, change):
        return
    if change.entry is not None and not (change.versions and task is not None):
        yield task_subject(change), TaskRecord(epoch=change.epoch, entry=change.entry)
    if change.tombstone is not None:
        yield task_subject(change), TaskRecord(epoch=change.epoch, tombstone=change.tombstone)
    task_id = checked_id(change.task_id)
    for version in reversed(change.versions):  # of a joint publication the first comes last, and stands for all of it
        yield _version_subject(task_id, version.number), VersionRecord(epoch=change.epoch, version=version)
    if change.aliases is not None:
        yield f"aliases-{task_id}", AliasesRecord(epoch=change.epoch, task_id=task_id, aliases=change.aliases)


def is_buried(task: TaskRecord | None, change: Change) -> bool:
    """Whether the task was deleted by a later change whose writer was faster."""
    return task is not None and task.tombstone is not None and change.tombstone is None


def task_subject(change: Change) -> str:
    """Raises InvalidName."""
    return f"task-{checked_id(change.task_id)}"


def _version_subject(task_id: str, number: int) -> str:
    return f"version-{task_id}-{number}"


def _subject(record: TaskRecord) -> str:
    if record.entry is not None:
        return record.entry.task.id
    if record.tombstone is not None:
        return record.tombstone.task_id
    raise CorruptRecord("a task record without a task")


def checked_id(task_id: str) -> str:
    if not _TASK_ID.fullmatch(task_id):
        raise InvalidName("not a task id", param="task_id")
    return task_id
