"""Every Redis key of training. RQ's own keys begin with `rq:`; see `queue.py`."""

from __future__ import annotations

JOBS = "chorus:jobs"  # sorted set: job id by its running number
LIVE = "chorus:jobs:live"  # set: ids of jobs that have not ended
ENDED = "chorus:jobs:ended"  # hash: jobs that ended in each state; `ms`: how long they took from their start
JOB_NUMBER = "chorus:jobs:number"  # counter
DATASETS = "chorus:datasets"  # sorted set, all scores 0: names in order
DATASET_RECORDS = "chorus:datasets:records"  # hash: name -> record


def job(job_id: str) -> str:
    """Hash: the job's record."""
    return f"chorus:job:{job_id}"


def events(job_id: str) -> str:
    """Stream: the job's events."""
    return f"chorus:job:{job_id}:events"


def idempotency(key_digest: str) -> str:
    """Hash: the job and the body's digest that an `Idempotency-Key` stands for."""
    return f"chorus:jobs:idempotency:{key_digest}"


def trainers(host: str) -> str:
    """Sorted set: trainers at work on a host, by the time at which their registration lapses."""
    return f"chorus:trainers:{host}"
