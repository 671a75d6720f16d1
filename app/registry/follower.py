"""The view of the store that a replica answers from: one immutable snapshot, replaced as a whole when something moves.

A thread follows the event stream and compares epochs; it and every write replace the snapshot through `refresh`. When
the store cannot be reached, or has forgotten what its record files hold, the last good snapshot stays: in memory, and
for a cold start in the manifest file.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from prompt_store import PromptStore, Snapshot, StoreError

log = logging.getLogger(__name__)
_BLOCK_MS = 200
_MAX_BACKOFF_S = 2.0
EMPTY = Snapshot(epoch=0, last_event_id="0", tasks=(), versions=(), aliases=())


class Follower:
    """Synchronous and thread-safe; `snapshot` may be read from any thread at any time."""

    def __init__(self, store: PromptStore, *, manifest: Path, reconcile_s: float, changed: Callable[[], None]) -> None:
        self.snapshot = EMPTY
        self.known = False  # whether `snapshot` came from anywhere at all
        self.degraded: str | None = None  # the code of what keeps the store out of reach
        self._store = store
        self._manifest = manifest
        self._reconcile_s = reconcile_s
        self._changed = changed
        self._refreshing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="registry-follower", daemon=True)

    def start(self) -> None:
        """Take the first snapshot, from the store or else from the manifest, and begin to follow."""
        try:
            self.refresh()
        except StoreError as error:
            self._degrade(error)
            self._load_manifest()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def refresh(self) -> None:
        """Read the store. Raises StoreError, and then the old snapshot stays."""
        with self._refreshing:
            snapshot = self._store.snapshot()
            if self._store.behind():
                self._mark("store_behind")
                if not self.known:
                    self._load_manifest()
                return
            moved = not self.known or snapshot.epoch != self.snapshot.epoch
            self.snapshot, self.known = snapshot, True
            self._mark(None)
        if moved:
            self._save(snapshot)
            self._changed()

    def _follow(self) -> None:
        wait_s, compared_at = 0.1, time.monotonic()
        while not self._stop.is_set():
            try:
                due = time.monotonic() - compared_at >= self._reconcile_s
                if self._behind(compare=due):
                    self.refresh()
                if due:
                    compared_at = time.monotonic()
                wait_s = 0.1
            except StoreError as error:
                self._degrade(error)
                self._stop.wait(wait_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads replicas, hides nothing
                wait_s = min(_MAX_BACKOFF_S, wait_s * 2)
            except Exception:
                log.exception("registry follower failed; it goes on")
                self._stop.wait(_MAX_BACKOFF_S)

    def _behind(self, *, compare: bool) -> bool:
        """Whether the store holds something that the snapshot does not. Waits for an event a short while."""
        if self.degraded or not self.known:
            self._stop.wait(_BLOCK_MS / 1000)
            return True
        if compare and self._store.epoch() != self.snapshot.epoch:
            return True
        return bool(self._store.events(self.snapshot.last_event_id, limit=1, block_ms=_BLOCK_MS))

    def _save(self, snapshot: Snapshot) -> None:
        try:
            snapshot.save(self._manifest)
        except StoreError:
            log.warning("manifest not saved: a cold start without the registry would know an older one", exc_info=True)

    def _load_manifest(self) -> None:
        try:
            self.snapshot, self.known = Snapshot.load(self._manifest), True
        except StoreError as error:
            log.warning("no manifest to start from", extra={"code": error.code})
            return
        log.info("started from the manifest", extra={"epoch": self.snapshot.epoch})
        self._changed()

    def _degrade(self, error: StoreError) -> None:
        self._mark(error.code)

    def _mark(self, degraded: str | None) -> None:
        if degraded != self.degraded:
            if degraded is None:
                log.info("registry in reach again")
            else:
                log.warning("registry degraded: serving what was last known", extra={"code": degraded})
        self.degraded = degraded
