"""Keeps jobs from being lost: takes back claims whose lease is silent, queues again what has no place in the queue.
Now and then it tidies up: checkpoints of jobs that have ended, blobs that no version names.

Every worker runs one; each step is a compare-and-set, so that two of them do no harm.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from app.errors import JobNotFound
from app.training.job import JOB_ID
from app.training.queue import Dispatcher
from app.training.records import JobRecords
from app.training.supervision import give_up
from prompt_store import PromptStore, StoreError

SWEEP_S = 600.0
"""Time between two looks for folders of jobs that have ended and for orphaned blobs."""

log = logging.getLogger(__name__)


class Reaper:
    def __init__(
        self,
        records: JobRecords,
        dispatcher: Dispatcher,
        store: PromptStore,
        data_dir: Path,
        *,
        every_s: float,
        orphan_grace_s: float,
    ) -> None:
        self._records = records
        self._dispatcher = dispatcher
        self._store = store
        self._data_dir = data_dir
        self._every_s = every_s
        self._orphan_grace_s = orphan_grace_s
        self._next = self._next_sweep = time.monotonic()

    def tick(self) -> None:
        """Look after all jobs, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every_s
        live = self._records.live()
        for job_id in live:
            self._look_after(job_id)
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self._sweep(set(live))
            self._collect_orphans()

    def _look_after(self, job_id: str) -> None:
        reply = self._records.take_back(job_id, attempt=None, reason="the worker was lost")
        if reply == "exhausted":
            give_up(self._records, self._store, job_id, attempt=None)
        elif reply == "queued":
            log.warning("%s: its worker was lost; queued again", job_id)
            self._dispatcher.put(job_id)
        elif reply == "held" and self._records.overdue(job_id):
            self._dispatcher.put(job_id)

    def _sweep(self, live: set[str]) -> None:
        """Remove checkpoints of jobs that have ended."""
        folder = self._data_dir / "jobs"
        if not folder.is_dir():
            return
        for path in folder.iterdir():
            if JOB_ID.fullmatch(path.name) and path.name not in live and self._has_ended(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _collect_orphans(self) -> None:
        """Tidying up must never disturb the job at hand: what keeps it from working is logged and tried again."""
        try:
            collected = self._store.collect_orphans(grace_s=self._orphan_grace_s)
        except StoreError as error:
            log.warning("orphaned blobs were not looked for: %s", error)
            return
        for digest in collected:
            log.info("blob %s: no version names it; put into quarantine", digest)

    def _has_ended(self, job_id: str) -> bool:
        try:
            return self._records.get(job_id).ended
        except JobNotFound:
            return False  # perhaps of a Redis that is being restored: a few kilobytes are no reason to guess
