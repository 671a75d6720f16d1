"""A replica that looks all the while others are killed: every version that it sees must load, with the right bytes."""

from __future__ import annotations

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_store import BlobStore, PromptStore, RedisMetadata, Snapshot, StoreError, StoreUnavailable, Version


class Looking(threading.Thread, ABC):
    """Looks again and again until it is stopped, and once more then."""

    def __init__(self) -> None:
        super().__init__(name="reader")
        self.stopped = threading.Event()
        self.ended = False

    @abstractmethod
    def look(self) -> None: ...

    def run(self) -> None:
        while not self.stopped.is_set():
            self.look()
            time.sleep(0.002)
        self.look()
        self.ended = True


class Reader(Looking):
    """Follows the registry as a replica does. Loads each version when it is first seen, and what aliases point to each
    time that something has moved or the server is away."""

    def __init__(self, store: PromptStore) -> None:
        super().__init__()
        self._store = store
        self._snapshot: Snapshot | None = None
        self._seen: set[tuple[str, int]] = set()
        self.looks = 0
        self.loads = 0
        self.away = 0
        self.epochs: set[int] = set()
        self.wrong: list[str] = []

    @property
    def seen(self) -> int:
        """Versions that were loaded at least once."""
        return len(self._seen)

    def look(self) -> None:
        before, away = self._snapshot, False
        self.looks += 1
        try:
            self._snapshot = self._newer(before)
        except StoreUnavailable:
            away = True
            self.away += 1
        if self._snapshot is None or (self._snapshot is before and not away):
            return
        self.epochs.add(self._snapshot.epoch)
        for version in self._snapshot.versions:
            if (version.task_id, version.number) not in self._seen:
                self._seen.add((version.task_id, version.number))
                self._load(version)
        self._follow_aliases(self._snapshot)

    def _newer(self, known: Snapshot | None) -> Snapshot:
        delta = None if known is None else self._store.delta(known)
        return self._store.snapshot() if known is None or delta is None else known.after(delta)

    def _follow_aliases(self, snapshot: Snapshot) -> None:
        for alias in snapshot.aliases:
            for number in alias.versions:
                try:
                    version = snapshot.version(alias.task, number)
                except StoreError as error:
                    self.wrong.append(f"{alias.task}:{alias.name} points to {number}: {error}")
                else:
                    self._load(version)

    def _load(self, version: Version) -> None:
        """By the store, which verifies, and by hand, so as not to believe it."""
        name = f"{version.task}@{version.number}"
        self.loads += 1
        try:
            tensors = self._store.load(version)
            data = (self._store.blobs.root / "blobs" / f"{version.digest}.safetensors").read_bytes()
        except (StoreError, OSError) as error:
            self.wrong.append(f"{name} cannot be loaded: {error!r}")
            return
        if hashlib.sha256(data).hexdigest() != version.digest:
            self.wrong.append(f"{name}: other bytes than its digest says")
        if tensors["prompt"].shape[0] != version.meta.num_virtual_tokens:
            self.wrong.append(f"{name}: another prompt than its record says")


@contextmanager
def reading(reader: Looking) -> Iterator[None]:
    """It looks until the block ends, and has not died meanwhile."""
    reader.start()
    try:
        yield
    finally:
        reader.stopped.set()
        reader.join(60)
    assert reader.ended, "the reader has died"


@contextmanager
def read_all_the_while(url: str, folder: Path) -> Iterator[Reader]:
    """A reader with connections of its own; nothing that it was served was wrong."""
    with PromptStore(RedisMetadata(url, timeout_s=1.0), BlobStore(folder)) as store:
        reader = Reader(store)
        with reading(reader):
            yield reader
        assert not reader.wrong, reader.wrong
