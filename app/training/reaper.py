"""Keeps jobs from being lost: takes back claims whose lease is silent, queues again what has no place in the queue.

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
from prompt_store import PromptStore

SWEEP_S = 600.0
"""Time between two looks for folders of jobs that have ended."""

log = logging.getLogger(__name__)


class Reaper:
    def __init__(
        self, records: JobRecords, dispatcher: Dispatcher, store: PromptStore, data_dir: Path, *, every_s: float
    ) -> None:
        self._records = records
        self._dispatcher = dispatcher
        self._store = store
        self._data_dir = data_dir
        self._every_s = every_s
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

    def _has_ended(self, job_id: str) -> bool:
        try:
            return self._records.get(job_id).ended
        except JobNotFound:
            return False  # perhaps of a Redis that is being restored: a few kilobytes are no reason to guess
