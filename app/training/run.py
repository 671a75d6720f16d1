"""The trainer's process: `python -m app.training.run JOB_ID --attempt N`, started by the worker, one job each.

Exit codes: 0 the job has ended, or is another's; 75 (EX_TEMPFAIL) stopped with its place saved, or for want of the
store; anything else a crash.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import redis
import torch

from app.backbone.placement import device_of
from app.errors import ChorusError, InvalidDataset
from app.settings import Settings
from app.telemetry import configure_logging
from app.telemetry.tracing import current_span, entered, handed_to_us, open_tracer
from app.training.connection import connect, is_outage
from app.training.datasets import DatasetStore, objects_at
from app.training.follow import Followers
from app.training.job import JobError
from app.training.loading import load_for_training
from app.training.parallel import Leader, join
from app.training.process import die_with_parent, watch_for_end
from app.training.records import JobRecords
from app.training.session import Context, Lost, Session
from app.training.trainer import Interrupted
from prompt_store import Fenced, PromptStore, StoreError
from prompt_store.durable import NO_ROOM

ENDED = os.EX_OK
STOPPED = os.EX_TEMPFAIL

NICENESS = 5
"""A server beside us goes first."""

log = logging.getLogger("app.training")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m app.training.run", description="Train one job.")
    parser.add_argument("job_id")
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--parent", type=int, default=None, help="die when this process does")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with_parent(options.parent)
        watch_for_end(sys.stdin.fileno(), lambda: os._exit(STOPPED))
    settings = Settings.model_validate({})  # from the environment, which the worker has written
    configure_logging(settings.log_level, settings.log_format)
    assert settings.redis_url is not None
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker decides
    os.nice(NICENESS)
    records = JobRecords(connect(settings.redis_url), lease_s=settings.job_lease_s)
    tracer = open_tracer(settings.otlp_endpoint, service="chorus-trainer", share=settings.trace_share)
    try:
        facts = {"chorus.job.id": options.job_id, "chorus.job.attempt": options.attempt}
        with entered(tracer.begin("job", facts, traceparent=handed_to_us())):
            return train(settings, records, options.job_id, options.attempt, stop)
    finally:
        tracer.close()


def train(settings: Settings, records: JobRecords, job_id: str, attempt: int, stop: threading.Event) -> int:
    """One attempt, and the job's end if it has one. Returns the exit code."""
    try:
        with _together(settings) as leader:
            with entered(current_span().child("load model")):
                context = _context(settings, records, stop, leader)
            Session(context, job_id, attempt).run()
    except Interrupted:
        return STOPPED
    except (Lost, Fenced) as lost:
        log.info("%s: attempt %d is over: %s", job_id, attempt, lost)
        return ENDED
    except Exception as error:
        try:
            return _end(records, job_id, attempt, error)
        except redis.RedisError as other:
            return _leave(job_id, attempt, other)
    return ENDED


def _end(records: JobRecords, job_id: str, attempt: int, error: Exception) -> int:
    """The job's end by an error; one of an outage ends the attempt alone. Returns the exit code."""
    if is_outage(error):
        return _leave(job_id, attempt, error)
    if isinstance(error, ChorusError | StoreError | OSError | torch.OutOfMemoryError):
        return _fail(records, job_id, attempt, error_of(error))
    log.error("%s: attempt %d failed", job_id, attempt, exc_info=error)
    message = "the trainer failed; the worker's log says how"
    return _fail(records, job_id, attempt, JobError(code="internal_error", message=message))


def _leave(job_id: str, attempt: int, error: Exception) -> int:
    """To a later attempt: what is out of reach is no fault of the job's. Raises any other error."""
    if not is_outage(error):
        raise error
    log.warning("%s: attempt %d leaves the job to another: %s", job_id, attempt, error)
    return STOPPED


def error_of(error: Exception) -> JobError:
    """What users are told of an error that training knows."""
    if isinstance(error, torch.OutOfMemoryError):
        return JobError(code="out_of_memory", message="the accelerator's memory does not hold one row of this job")
    if isinstance(error, OSError):
        full = error.errno in NO_ROOM
        return JobError(code="storage_full" if full else "storage_failed", message=error.strerror or "storage failed")
    assert isinstance(error, ChorusError | StoreError)
    row = error.row if isinstance(error, InvalidDataset) else None
    return JobError(code=error.code, message=error.message, param=error.param, row=row)


def _fail(records: JobRecords, job_id: str, attempt: int, error: JobError) -> int:
    # The message is the submitter's to read: it may quote a row. The log is not.
    log.warning("%s: failed: %s", job_id, error.code, extra={"param": error.param, "row": error.row})
    current_span().fail(error.code)
    records.move(job_id, "failed", attempt=attempt, error=error)
    return ENDED


@contextlib.contextmanager
def _together(settings: Settings) -> Iterator[Callable[[], Leader] | None]:
    """Start the other processes of a job that has several; what is given meets them and leads. They end with it."""
    if settings.train_processes == 1:
        yield None
        return
    followers = Followers(settings)
    leaders: list[Leader] = []

    def lead() -> Leader:
        join(0, followers.processes, followers.port)
        leaders.append(Leader())
        return leaders[-1]

    try:
        yield lead
    finally:
        followers.release()
        for leader in leaders:
            leader.close()


def _context(
    settings: Settings, records: JobRecords, stop: threading.Event, lead: Callable[[], Leader] | None
) -> Context:
    torch.set_num_threads(max(1, trainer_threads(settings) // settings.train_processes))
    assert settings.redis_url is not None
    own = device_of(settings.device, 0, settings.train_processes)
    backbone = load_for_training(settings.model_copy(update={"device": str(own)}))
    return Context(
        records=records,
        store=PromptStore.open(settings.redis_url, settings.blobs, blobs_url=settings.blobs_url),
        datasets=DatasetStore(
            connect(settings.redis_url),
            settings.data_dir / "datasets",
            max_rows=settings.max_train_rows,
            objects=objects_at(settings.blobs_url),
        ),
        backbone=backbone,
        data_dir=settings.data_dir,
        max_context=settings.max_context,
        checkpoint_s=settings.checkpoint_s,
        stop=stop,
        fill=None if lead is None else lead().fill,
    )


def trainer_threads(settings: Settings) -> int:
    """Half of the cores: the server that shares the machine keeps the other half while a trainer is registered."""
    return max(1, settings.cpu_threads // 2)


if __name__ == "__main__":
    raise SystemExit(main())
