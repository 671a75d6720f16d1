"""The worker's process: takes jobs off the queue, starts a trainer for each, and keeps the lease while it lives.

It computes nothing and loads no model. One job at a time. The record decides everything: an entry of the queue is only
a hint that a job may wait. See `docs/adr/0005-job-queue.md`.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import socket
import threading
from typing import Any

import redis
from rq import Queue
from rq.exceptions import DequeueTimeout
from rq.job import Job as Entry
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker, WorkerStatus
from rq.worker_registration import clean_worker_registry

from app.settings import Settings
from app.telemetry import configure_logging
from app.telemetry.tracing import open_tracer
from app.training.connection import connect, despite_outage, is_outage
from app.training.job import JOB_ID
from app.training.queue import Dispatcher, open_queue
from app.training.reaper import Reaper
from app.training.records import JobRecords
from app.training.supervision import Supervisor
from prompt_store import PromptStore, StoreError

POLL_S = 1
"""How long one look at an empty queue waits."""

RETRY_S = 1.0

log = logging.getLogger(__name__)


class TrainingWorker(SimpleWorker):
    """An RQ worker as far as the queue goes: registration, heartbeats, executions. The work is a supervisor's.

    RQ's own loop is not used: it quits on a timeout, takes commands over pub/sub, sets process titles and log handlers.
    """

    def __init__(self, queue: Queue, name: str, supervisor: Supervisor, dispatcher: Dispatcher, reaper: Reaper) -> None:
        super().__init__([queue], name=name, connection=queue.connection, serializer=JSONSerializer)
        self._supervisor = supervisor
        self._dispatcher = dispatcher
        self._reaper = reaper

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        """As it is. RQ would have every call wait minutes for its answer, the signs of life too: a worker whose Redis
        hangs would not notice that its lease is gone. Our own look at the queue waits `POLL_S`."""
        return connection

    def serve(self, stop: threading.Event) -> None:
        """Take jobs until `stop`. Redis may go away and come back, or refuse for a while."""
        while not stop.is_set():
            try:
                self._serve_while_connected(stop)
            except (redis.RedisError, StoreError) as error:
                if not isinstance(error, StoreError) and not is_outage(error):
                    raise
                log.warning("the store is out of reach, trying again: %s", error)
                stop.wait(RETRY_S)
        with despite_outage("the queue was not told that this worker goes"):
            self.register_death()

    def _serve_while_connected(self, stop: threading.Event) -> None:
        if not self.connection.exists(self.key):
            clean_worker_registry(self.queues[0])
            self.register_birth()
            self.set_state(WorkerStatus.IDLE)
        while not stop.is_set():
            self.heartbeat()
            self._reaper.tick()
            found = self._next()
            if found is not None and not stop.is_set():
                self.execute_job(found, self.queues[0])

    def _next(self) -> Entry | None:
        try:
            found = Queue.dequeue_any(self.queues, POLL_S, connection=self.connection, serializer=JSONSerializer)
        except DequeueTimeout:
            return None
        return None if found is None else found[0]

    def execute_job(self, job: Entry, queue: Queue) -> None:
        """Attend to one entry. Only its id is read: what else Redis holds about it is not trusted."""
        self.prepare_execution(job)
        again = False
        try:
            if JOB_ID.fullmatch(job.id):
                again = self._supervisor.attend(job.id, beat=lambda: self._beat(job))
        finally:
            with self.connection.pipeline() as pipeline:
                self.cleanup_execution(job, pipeline=pipeline)
                pipeline.execute()
            self._dispatcher.remove(job.id)
            self.set_state(WorkerStatus.IDLE)
        if again:
            self._dispatcher.put(job.id)

    def _beat(self, job: Entry) -> None:
        self.maintain_heartbeats(job)
        self._reaper.tick()


def run_worker(settings: Settings) -> int:
    """Work until SIGTERM or SIGINT: then the job at hand saves its place, goes back to the queue, and this returns.

    Raises TracingUnavailable.
    """
    if settings.redis_url is None:
        log.error("a worker needs CHORUS_REDIS_URL")
        return 2
    configure_logging(settings.log_level, settings.log_format)
    tracer = open_tracer(settings.otlp_endpoint, service="chorus-worker", share=settings.trace_share)
    stop = threading.Event()
    _on_signals(stop)
    client = connect(settings.redis_url)
    host = socket.gethostname()
    name = f"{host}-{secrets.token_hex(4)}"
    records = JobRecords(client, lease_s=settings.job_lease_s)
    opened = PromptStore.open(settings.redis_url, settings.blobs, blobs_url=settings.blobs_url)
    with contextlib.closing(tracer), opened as store:
        dispatcher = Dispatcher(client)
        supervisor = Supervisor(settings, records, store, host=host, name=name, stop=stop, tracer=tracer)
        reaper = Reaper(
            records,
            dispatcher,
            store,
            settings.data_dir,
            every_s=settings.job_lease_s / 3,
            orphan_grace_s=settings.orphan_grace_s,
        )
        worker = _connected_worker(client, name, supervisor, dispatcher, reaper, stop)
        log.info("worker %s is ready", name)
        if worker is not None:
            worker.serve(stop)
    log.info("worker %s has stopped", name)
    return 0


def _connected_worker(client: redis.Redis, name: str, *parts: Any) -> TrainingWorker | None:
    """RQ greets Redis while it builds a worker, so this waits for a Redis that is not there yet."""
    *rest, stop = parts
    while not stop.is_set():
        try:
            return TrainingWorker(open_queue(client), name, *rest)
        except redis.RedisError as error:
            if not is_outage(error):
                raise
            log.warning("Redis is out of reach, trying again: %s", error)
            stop.wait(RETRY_S)
    return None


def _on_signals(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
