"""Reads every blob again, at leisure: damage on a disk is found before the day on which the prompt is needed.

What is loaded serves on from memory. A damaged version is told of once, counted in the metrics as long as it stays so,
and named by `chorus fsck`; publishing the same content again mends it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from prompt_store import BlobNotFound, CorruptBlob, InvalidBlob, PromptStore, StoreError, Version

log = logging.getLogger(__name__)

PAUSE_S = 0.02
"""Between two blobs, so that a pass takes a few per cent of a core and of the disk."""


class Scrubber:
    """A thread that verifies every version's blob once in `every_s` seconds; 0 never."""

    def __init__(self, store: PromptStore, versions: Callable[[], Iterable[Version]], *, every_s: float) -> None:
        self._store, self._versions, self._every_s = store, versions, every_s
        self._damaged: dict[tuple[str, int, str], str] = {}
        self._read = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry-scrubber", daemon=True)

    def start(self) -> None:
        if self._every_s:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def readings(self) -> dict[str, float]:
        return {"registry_blobs_scrubbed_total": float(self._read), "registry_blobs_damaged": float(len(self._damaged))}

    def scrub(self, *, pause_s: float = PAUSE_S) -> None:
        """One pass over all versions that are in service."""
        seen = set()
        for version in list(self._versions()):
            if self._stopping.wait(pause_s):
                return
            if version.state != "retired":
                seen.add((version.task, version.number, version.digest))
                self._verify(version)
        self._damaged = {key: code for key, code in self._damaged.items() if key in seen}

    def _verify(self, version: Version) -> None:
        key = (version.task, version.number, version.digest)
        facts = {"version": f"{version.task}@{version.number}", "digest": version.digest}
        try:
            self._store.load(version)
        except (BlobNotFound, CorruptBlob, InvalidBlob) as error:
            if key not in self._damaged:
                log.error("a blob is damaged", extra={**facts, "code": error.code})
            self._damaged[key] = error.code
        except StoreError as error:  # the folder is out of reach: nothing is known of the blob
            log.warning("a blob could not be verified", extra={**facts, "code": error.code})
            return
        else:
            if self._damaged.pop(key, None) is not None:
                log.info("a damaged blob is whole again", extra=facts)
        self._read += 1

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            self.scrub()
