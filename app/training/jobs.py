"""Jobs as the API sees them: submit, read, cancel, follow. Plans what comes in, keeps the record, feeds the queue."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import redis

from app.backbone import Backbone
from app.telemetry.tracing import Span, current_span, entered
from app.training.census import take_census
from app.training.connection import CALL_TIMEOUT_S, connect, reports_outage
from app.training.datasets import DatasetStore, objects_at
from app.training.job import Job, JobEvent
from app.training.plan import Plan
from app.training.planning import Planner
from app.training.queue import QUEUE_FACTS, QUEUE_NAME, Dispatcher
from app.training.records import JobRecords, event_json
from app.training.requests import TrainRequest
from prompt_store import PromptStore
from prompt_store.breaker import Breaker


class JobStore:
    """Thread-safe and synchronous. Every method may raise StoreDown when Redis is out of reach."""

    def __init__(
        self,
        client: redis.Redis,
        store: PromptStore,
        datasets: DatasetStore,
        *,
        lease_s: float,
        backbone: Backbone | None = None,
    ) -> None:
        self._client = client
        self._records = JobRecords(client, lease_s=lease_s)
        self._queue = Dispatcher(client)
        self._planner = Planner(store, datasets, backbone)
        self.datasets = datasets

    @classmethod
    def open(
        cls,
        redis_url: str,
        data_dir: Path,
        store: PromptStore,
        *,
        lease_s: float,
        max_rows: int = 200_000,
        blobs_url: str | None = None,
        backbone: Backbone | None = None,
        breaker: Breaker | None = None,
    ) -> Self:
        """With a client of its own, guarded by `breaker`. `data_dir`, or what lies at `blobs_url`, is shared by the API
        and its workers. `backbone`, where the process has it loaded, moves the check of label words and context from
        the trainer to the submission."""
        client = connect(redis_url, timeout_s=CALL_TIMEOUT_S, breaker=breaker)
        return cls(
            client,
            store,
            DatasetStore(client, data_dir / "datasets", max_rows=max_rows, objects=objects_at(blobs_url)),
            lease_s=lease_s,
            backbone=backbone,
        )

    @reports_outage
    def submit(self, request: TrainRequest, idempotency_key: str | None = None) -> tuple[Job, bool]:
        """Check a request, pin its data, and queue it. Returns the job and whether it is new.

        The same `idempotency_key` with the same body gives the same job, whatever has become of it.
        Raises InvalidDataset, DatasetNotFound, InvalidTemplate, InvalidVerbalizer, IdempotencyConflict.
        """
        idempotency = None
        if idempotency_key is not None:
            idempotency = _digest(idempotency_key), _digest(request.model_dump_json())
            known = self._records.find_idempotent(*idempotency)
            if known is not None:
                return self.get(known), False
        plan, data = self._planner.plan(request)
        with entered(current_span().child(f"send {QUEUE_NAME}", QUEUE_FACTS, kind="producer")) as span:
            job_id, created = self._enqueue(plan, data, idempotency, span)
        return self.get(job_id), created

    def _enqueue(
        self, plan: Plan, data: dict[str, Any], idempotency: tuple[str, str] | None, span: Span
    ) -> tuple[str, bool]:
        """The record names `span`, for whoever carries the job out to continue."""
        job_id, created = self._records.create(
            f"job-{secrets.token_hex(10)}", plan, data, idempotency=idempotency, trace=span.traceparent
        )
        span.set({"chorus.job.id": job_id, "chorus.task": plan.task, "messaging.message.id": job_id})
        if created:
            for warning in plan.warnings:
                self._records.tell(job_id, event_json("warning", warning))
            self._queue.put(job_id)
            # A worker may have it by now: only who holds a job gives it back.
            self._records.move(job_id, "queued", attempt=None, source="validating")
        return job_id, created

    @reports_outage
    def find_submitted(self, request: TrainRequest, idempotency_key: str) -> Job | None:
        """The job that this key and body stand for, if there is one. Raises IdempotencyConflict."""
        known = self._records.find_idempotent(_digest(idempotency_key), _digest(request.model_dump_json()))
        return None if known is None else self.get(known)

    @reports_outage
    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        job = self._records.get(job_id)
        if job.status != "queued":
            return job
        return job.model_copy(update={"queue_position": self._queue.position(job_id)})

    @reports_outage
    def list(self, *, after: str | None = None, limit: int = 100) -> tuple[Sequence[Job], bool]:
        """Jobs, newest first, from behind the job `after`, and whether there are more."""
        return self._records.list(after=after, limit=limit)

    @reports_outage
    def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job at once; a running one ends `cancelled` as soon as its trainer has stopped.

        Raises JobNotFound, JobEnded (also once publishing has begun).
        """
        job = self._records.cancel(job_id)
        if job.status == "cancelled":
            self._queue.remove(job_id)
        return job

    @reports_outage
    def events(self, job_id: str, *, after: str = "0", limit: int = 1000) -> Sequence[JobEvent]:
        """Events after the id `after`."""
        return self._records.events(job_id, after=after, limit=limit)

    @reports_outage
    def active_trainers(self, host: str) -> int:
        """How many trainers compute on this host now: what a server divides its cores by."""
        return self._records.active_trainers(host)

    @reports_outage
    def census(self) -> dict[str, float]:
        """How many jobs wait, run and have ended; see `census.py`."""
        return take_census(self._client)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
