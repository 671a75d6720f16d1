"""One claim, from the queue's hint to the job's next rest: claim, start the trainer, keep the lease, settle the end."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import redis

from app.settings import Settings
from app.telemetry.tracing import NOTHING, Facts, Span, Tracer, current_span, entered, handed_on
from app.training.connection import despite_outage, is_outage
from app.training.job import JobError, JobResult
from app.training.process import environment
from app.training.queue import QUEUE_FACTS, QUEUE_NAME
from app.training.records import GIVE_UP_AFTER, Held, JobRecords, job_folder
from prompt_store import PromptStore, StoreError

TRAINER = (sys.executable, "-m", "app.training.run")
"""How a trainer is started; the job, the attempt and our process id follow."""

GRACE_S = 20.0
"""How long a trainer that was asked to stop may take to save its place before it is killed."""

ENDING_S = 8.0
"""How long a trainer whose job has ended may take to end, too."""

STOPPED = os.EX_TEMPFAIL
"""Exit code of a trainer that saved its place; see `run.py`."""

CANNOT_START = 126
"""What a shell says of a program that it could not run."""

log = logging.getLogger(__name__)


class Supervisor:
    """Attends to one job at a time for a worker named `name` on `host`."""

    def __init__(
        self,
        settings: Settings,
        records: JobRecords,
        store: PromptStore,
        *,
        host: str,
        name: str,
        stop: threading.Event,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer or Tracer()
        self._settings = settings
        self._records = records
        self._store = store
        self._host = host
        self._name = name
        self._stop = stop

    def attend(self, job_id: str, *, beat: Callable[[], None]) -> bool:
        """Take the job if it waits, and see it through. Returns whether it shall be queued again.

        `beat` is called with every sign of life, for the queue's own books.
        """
        began = time.monotonic()
        attempt = self._records.claim(job_id, self._name)
        if not attempt:
            return False
        with entered(self._trace(job_id, attempt, began)):
            return self._attend(job_id, attempt, beat)

    def _trace(self, job_id: str, attempt: int, began: float) -> Span:
        """A span from the claim on, in the trace of the job's submission."""
        if not self._tracer.on:
            return NOTHING
        facts: Facts = {"chorus.job.id": job_id, "chorus.job.attempt": attempt, **QUEUE_FACTS}
        traceparent = None
        with despite_outage(f"{job_id}: its trace begins anew"):  # a trace is no reason to lose a job
            traceparent = self._records.trace(job_id)
        name = f"process {QUEUE_NAME}"
        span = self._tracer.begin(name, facts, kind="consumer", traceparent=traceparent, began=began)
        span.child("claim", began=began).end()
        return span

    def _attend(self, job_id: str, attempt: int, beat: Callable[[], None]) -> bool:
        log.info("%s: attempt %d", job_id, attempt)
        self._store.raise_fence(job_id, attempt)
        if self._published_before(job_id, attempt):
            return False
        try:
            trainer = self._start(job_id, attempt)
        except OSError as error:  # no memory for a process, no right to run it: as if the trainer had died at once
            log.error("%s: the trainer could not be started: %s", job_id, error)
            return self._settle(job_id, attempt, CANNOT_START)
        try:
            self._watch(trainer, job_id, attempt, beat)
        finally:
            _end(trainer)
            with despite_outage(f"{job_id}: its trainer is still counted"):
                self._records.unregister_trainer(self._host, self._name)
        return self._settle(job_id, attempt, trainer.returncode)

    def _published_before(self, job_id: str, attempt: int) -> bool:
        """An earlier attempt's worker may have died between publishing and saying so."""
        found = _succeeds_by_publication(self._records, self._store, job_id, attempt)
        if found:
            self._forget(job_id)
        return found

    def _start(self, job_id: str, attempt: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*TRAINER, job_id, "--attempt", str(attempt), "--parent", str(os.getpid())],
            env=handed_on(environment(self._settings), current_span()),
            stdin=subprocess.PIPE,
        )

    def _watch(self, trainer: subprocess.Popen[bytes], job_id: str, attempt: int, beat: Callable[[], None]) -> None:
        """Until the trainer ends: signs of life, and the wish to stop passed on."""
        held: Held = "held"
        heard = time.monotonic()
        asked: float | None = None
        since: float | None = None
        while not _ended_within(trainer, self._settings.job_heartbeat_s):
            try:
                held = self._records.beat(job_id, attempt)
                self._records.register_trainer(self._host, self._name, ttl_s=self._settings.job_lease_s)
                beat()
                heard = time.monotonic()
            except (redis.RedisError, StoreError) as error:
                if not isinstance(error, StoreError) and not is_outage(error):
                    raise
                log.warning("%s: no sign of life could be given: %s", job_id, error)
            if held == "lost" and not self._is_ending(job_id, attempt, since := since or time.monotonic()):
                trainer.kill()
            silent = time.monotonic() - heard > self._settings.job_lease_s
            if asked is None and (held == "cancel" or silent or self._stop.is_set()):
                asked = time.monotonic()
                trainer.send_signal(signal.SIGTERM)
            if asked is not None and time.monotonic() - asked > GRACE_S:
                trainer.kill()

    def _is_ending(self, job_id: str, attempt: int, since: float) -> bool:
        """Whether the job has ended in this attempt, as a rule by its trainer, which may still tell its trace."""
        try:
            job = self._records.get(job_id)
        except redis.RedisError as error:
            if not is_outage(error):
                raise
            return False
        return job.ended and job.attempt == attempt and time.monotonic() - since < ENDING_S

    def _settle(self, job_id: str, attempt: int, code: int) -> bool:
        """Bring the record to rest. Returns whether the job shall be queued again."""
        current_span().set({"chorus.trainer.exit_code": code})
        job = self._records.get(job_id)
        if job.attempt != attempt:
            return False
        if job.ended:
            self._forget(job_id)
            return False
        if job.cancel_requested and self._records.move(job_id, "cancelled", attempt=attempt) == "moved":
            self._forget(job_id)
            return False
        if code in (STOPPED, -signal.SIGTERM) and self._stop.is_set():
            reason = "the worker is stopping; the job goes on elsewhere"
            return self._records.move(job_id, "queued", attempt=attempt, reason=reason) == "moved"
        left = code == STOPPED
        reason = (
            "its attempt stopped early, as where the store is out of reach"
            if left
            else f"the trainer ended with code {code}"
        )
        reply = self._records.take_back(job_id, attempt=attempt, reason=reason)
        if reply == "exhausted":
            give_up(self._records, self._store, job_id, attempt=attempt, left=left)
        if reply in ("exhausted", "cancelled"):
            self._forget(job_id)
        return reply == "queued"

    def _forget(self, job_id: str) -> None:
        shutil.rmtree(job_folder(self._settings.data_dir, job_id), ignore_errors=True)


def give_up(records: JobRecords, store: PromptStore, job_id: str, *, attempt: int | None, left: bool = False) -> None:
    """End a job that was lost too often; if it had published before it was lost, it succeeded. `left`: the last attempt
    was not lost, but stopped early (`run.STOPPED`) though nobody here had told it to.

    A holder that was only frozen may wake up: from here on it can publish nothing.
    """
    store.raise_fence(job_id, records.get(job_id).attempt + 1)
    if _succeeds_by_publication(records, store, job_id, attempt):
        return
    lost = JobError(code="worker_lost", message=f"the worker was lost {GIVE_UP_AFTER} times in a row without progress")
    away = JobError(
        code="store_unavailable",
        message=f"{GIVE_UP_AFTER} attempts in a row came to nothing; the last ended as where the store is away",
    )
    records.move(job_id, "failed", attempt=attempt, error=away if left else lost)


def _succeeds_by_publication(records: JobRecords, store: PromptStore, job_id: str, attempt: int | None) -> bool:
    """Whether the job has published; its record says so from here on."""
    versions = store.find_publications(job_id)
    if versions:
        records.move(job_id, "publishing", attempt=attempt)
        records.move(job_id, "succeeded", attempt=attempt, result=JobResult.of(versions))
    return bool(versions)


def _ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.kill()
        process.wait()
