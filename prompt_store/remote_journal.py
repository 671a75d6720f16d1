"""The record files (see `journal.py`) in an object store, where nobody can hold a lock.

    <url>/records/<subject>/<epoch>   one subject as of one epoch; task-<id>, version-<id>-<n> or aliases-<id>
    <url>/records/epoch/<epoch>       an epoch that was recorded

An object is written once, under the epoch of its change, and never changed: of a subject the highest epoch counts. So
writers may arrive in any order, and none can undo another's work. Whoever has written a state removes the older ones;
what a writer that died leaves of them is removed by the next.
"""

from __future__ import annotations

from collections import defaultdict

from prompt_store.errors import CorruptRecord, StoreUnavailable
from prompt_store.journal import (
    MAX_RECORD_BYTES,
    AnyRecord,
    EpochRecord,
    Journal,
    Stamped,
    TaskRecord,
    collect_record,
    is_buried,
    kind_of,
    news_of,
    seal,
    task_subject,
    unseal,
    without_buried,
)
from prompt_store.metadata import Change
from prompt_store.objects import ObjectMissing, ObjectStore, ObjectTooLong

_FOLDER = "records"
_EPOCH = "epoch"
_DIGITS = 20
_ATTEMPTS = 5


class RecordObjects:
    """Records in `objects`. Safe to use from several threads, processes and machines."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def floor(self) -> int:
        """The highest epoch ever recorded here. Raises StoreUnavailable."""
        return max(self._epochs(_EPOCH), default=0)

    def write(self, change: Change) -> None:
        """Make `change` durable; returns when a crash can no longer undo it. Raises StoreUnavailable."""
        task = task_subject(change)
        for subject, record in news_of(change, self._readable(task, TaskRecord)):
            self._replace(subject, record)
        # Looked at again behind the writes: of a deletion and a write at one time, one sees what the other has done.
        if change.tombstone is not None or is_buried(self._readable(task, TaskRecord), change):
            self._remove_parts(change.task_id)
        self.raise_floor(change.epoch)

    def raise_floor(self, epoch: int) -> None:
        """Record that the server has reached `epoch`."""
        self._replace(_EPOCH, EpochRecord(epoch=epoch))

    def read_all(self) -> Journal:
        """Every record. Versions and aliases of deleted tasks are left out."""
        journal = Journal()
        newest: dict[tuple[str, type[Stamped]], int] = defaultdict(int)
        for name in self._objects.names(_FOLDER):
            subject, _, stamp = name.rpartition("/")
            kind = kind_of(subject)
            if kind is not None and _is_epoch(stamp):
                newest[subject, kind] = max(newest[subject, kind], int(stamp))
        found = self._objects.get_many([_name(subject, epoch) for (subject, _), epoch in newest.items()])
        for (subject, kind), epoch in newest.items():
            data = found[_name(subject, epoch)]
            try:
                record = self._latest(subject, kind) if data is None else _unseal(data, kind, epoch)
                if record is not None:
                    collect_record(journal, record)
            except CorruptRecord:
                journal.unreadable.append(subject)
        return without_buried(journal)

    def purge_temporaries(self) -> None:
        """There are none: an object is there whole or not at all."""

    def _readable(self, subject: str, kind: type[AnyRecord]) -> AnyRecord | None:
        try:
            return self._latest(subject, kind)
        except CorruptRecord:
            return None

    def _replace(self, subject: str, record: Stamped) -> None:
        """Write a state unless a newer one can be read, then remove the older ones."""
        if max(self._epochs(subject), default=-1) >= record.epoch:
            present = self._readable(subject, type(record))
            if present is not None and present.epoch >= record.epoch:
                return
        self._objects.put(_name(subject, record.epoch), seal(record))
        for epoch in self._epochs(subject):
            if epoch < record.epoch:
                self._objects.delete(_name(subject, epoch))

    def _latest(self, subject: str, kind: type[AnyRecord]) -> AnyRecord | None:
        """The newest state of a subject. Raises CorruptRecord when that cannot be trusted."""
        for _ in range(_ATTEMPTS):
            epochs = self._epochs(subject)
            if not epochs:
                return None
            try:
                return _unseal(self._objects.get(_name(subject, epochs[-1]), limit=MAX_RECORD_BYTES), kind, epochs[-1])
            except ObjectMissing:
                continue  # a newer one was written meanwhile, and this one removed
            except ObjectTooLong as error:
                raise CorruptRecord(f"record {subject}: {error}") from None
        raise StoreUnavailable(f"record {subject} changes faster than it can be read")

    def _epochs(self, subject: str) -> list[int]:
        return [int(name) for name in self._objects.names(f"{_FOLDER}/{subject}") if _is_epoch(name)]

    def _remove_parts(self, task_id: str) -> None:
        """Versions and aliases of a deleted task: they may quote users' texts, so they go with it."""
        for name in self._objects.names(_FOLDER):
            if name.startswith((f"version-{task_id}-", f"aliases-{task_id}/")):
                self._objects.delete(f"{_FOLDER}/{name}")


def _unseal(data: bytes, kind: type[AnyRecord], epoch: int) -> AnyRecord:
    record = unseal(data, kind)
    if record.epoch != epoch:
        raise CorruptRecord(f"a record of epoch {record.epoch} under the name of {epoch}")
    return record


def _name(subject: str, epoch: int) -> str:
    return f"{_FOLDER}/{subject}/{epoch:0{_DIGITS}}"


def _is_epoch(name: str) -> bool:
    return len(name) == _DIGITS and name.isascii() and name.isdigit()
