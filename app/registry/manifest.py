"""The manifest file, kept up to date without keeping anybody waiting.

A thread of its own writes the newest snapshot it was given: soon after a change, but no more often than every few
seconds and never more than a small part of the time, however fast things change and however much there is to write.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from prompt_store import Snapshot, StoreError

log = logging.getLogger(__name__)
EVERY_S = 3.0
_MAX_SHARE = 0.05  # of the time that may be spent on writing


class ManifestWriter:
    """`offer` may be called from any thread; what was offered last is on disk when `stop` returns."""

    def __init__(self, path: Path, *, every_s: float = EVERY_S) -> None:
        self._path, self._every_s = path, every_s
        self._pending: Snapshot | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="registry-manifest", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def offer(self, snapshot: Snapshot) -> None:
        with self._changed:
            self._pending = snapshot
            self._changed.notify()

    def _write(self) -> None:
        pause_s = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, timeout=pause_s)
                self._changed.wait_for(lambda: self._stopping or self._pending is not None)
                snapshot, self._pending = self._pending, None
                if snapshot is None:
                    return
            began = time.monotonic()
            self._save(snapshot)
            pause_s = max(self._every_s, (time.monotonic() - began) / _MAX_SHARE)

    def _save(self, snapshot: Snapshot) -> None:
        try:
            snapshot.save(self._path)
        except StoreError:
            log.warning("manifest not saved: a cold start without the registry would know an older one", exc_info=True)
        except Exception:
            log.exception("manifest not saved: a defect of ours; the next change tries again")
