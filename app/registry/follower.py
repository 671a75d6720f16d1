"""The view of the store that a replica answers from: one immutable snapshot, replaced as a whole when something moves.

A thread follows the event stream and compares epochs; it and every write move the snapshot on through `refresh`: by
what the events name, and by reading everything when they do not add up. When the store cannot be reached, or has
forgotten what its record files hold, the last good snapshot stays: in memory, and for a cold start in the manifest; a
replica that has none reads the records that lie beside the blobs.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from app.registry.manifest import ManifestWriter
from prompt_store import PromptStore, Snapshot, StoreError, recorded_snapshot

log = logging.getLogger(__name__)
_BLOCK_MS = 200
_GATHER_S = 0.02  # after each refresh, so that a burst of changes is read in a few
_MAX_BACKOFF_S = 2.0

Changed = Callable[[Snapshot, frozenset[str] | None], None]


class Follower:
    """Synchronous and thread-safe; `snapshot` may be read from any thread at any time.

    `changed(before, names)` is called after each move with the snapshot it replaced and the tasks that may differ;
    None: any may. `full_reads` counts how often everything was read.
    """

    def __init__(self, store: PromptStore, *, manifest: Path, reconcile_s: float, changed: Changed) -> None:
        self.snapshot = Snapshot()
        self.known = False  # whether `snapshot` came from anywhere at all
        self.degraded: str | None = None  # the code of what keeps the store from being read
        self.full_reads = 0
        self._followed = False  # whether events behind `snapshot` tell all that it lacks
        self._lacking: dict[str, str] | None = None  # why there was nothing to start from, as last told
        self._store = store
        self._manifest = manifest
        self._writer = ManifestWriter(manifest)
        self._reconcile_s = reconcile_s
        self._changed = changed
        self._refreshing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="registry-follower", daemon=True)

    def start(self) -> None:
        """Take the first snapshot, from the store or else from what lies on disk, and begin to follow."""
        try:
            self.refresh()
        except Exception as error:
            self._fall_back(error)
        self._thread.start()
        self._writer.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._writer.stop()

    def refresh(self) -> None:
        """Move on to what the store holds now. Raises StoreError, and then the old snapshot stays."""
        with self._refreshing:
            if self.degraded == "store_behind" and self._store.behind():
                return  # still; reading everything once more would tell nothing
            before = self.snapshot
            snapshot, names = self._read()
            if self._store.behind():
                self._mark("store_behind")
                if not self.known:
                    self._take_what_is_left()
                return
            moved = not self.known or snapshot.epoch != before.epoch or names is None
            self.snapshot, self.known, self._followed = snapshot, True, True
            self._mark(None)
            if moved:  # under the lock: whoever listens hears of the moves in their order
                self._writer.offer(snapshot)
                self._changed(before, names)

    def _read(self) -> tuple[Snapshot, frozenset[str] | None]:
        """The registry as it is now, and the tasks that may differ from what is known."""
        delta = self._store.delta(self.snapshot) if self._followed else None
        if delta is not None:
            return self.snapshot.after(delta), frozenset(delta.entries)
        self.full_reads += 1
        return self._store.snapshot(), None

    def _follow(self) -> None:
        wait_s, compared_at = 0.1, time.monotonic()
        while not self._stop.is_set():
            try:
                due = time.monotonic() - compared_at >= self._reconcile_s
                if self._behind(compare=due):
                    self.refresh()
                    self._stop.wait(_GATHER_S)
                if due:
                    compared_at = time.monotonic()
                wait_s = 0.1
            except Exception as error:
                self._fall_back(error)
                self._stop.wait(wait_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads replicas, hides nothing
                wait_s = min(_MAX_BACKOFF_S, wait_s * 2)

    def _behind(self, *, compare: bool) -> bool:
        """Whether the store holds something that the snapshot does not. Waits for an event a short while."""
        if self.degraded or not self.known:
            self._stop.wait(_BLOCK_MS / 1000)
            return True
        if compare and self._store.epoch() != self.snapshot.epoch:
            return True
        return bool(self._store.events(self.snapshot.last_event_id, limit=1, block_ms=_BLOCK_MS))

    def _fall_back(self, error: Exception) -> None:
        """What is known goes on serving, whatever keeps the store from being read."""
        if not isinstance(error, StoreError):
            log.error("registry not read, for a reason that has no name", exc_info=error)
        self._mark(error.code if isinstance(error, StoreError) else "internal_error")
        with self._refreshing:
            if not self.known:
                self._take_what_is_left()

    def _take_what_is_left(self) -> None:
        """The manifest, or else what the records tell; where neither can be read, nothing is known."""
        before = self.snapshot
        try:
            found, followed, source = Snapshot.load(self._manifest), True, "manifest"
        except StoreError as unread:
            try:
                found, followed, source = recorded_snapshot(self._store.records), False, "records"
            except StoreError as error:
                codes = {"manifest": unread.code, "records": error.code}
                if codes != self._lacking:
                    log.warning("no manifest and no records to start from", extra=codes)
                self._lacking = codes
                return
        self.snapshot, self.known, self._followed = found, True, followed
        log.info("started without the registry", extra={"source": source, "epoch": found.epoch})
        self._changed(before, None)

    def _mark(self, degraded: str | None) -> None:
        if degraded != self.degraded:
            if degraded is None:
                log.info("registry in reach again")
            else:
                log.warning("registry degraded: serving what was last known", extra={"code": degraded})
        self.degraded = degraded
