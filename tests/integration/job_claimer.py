"""A worker that only claims: every job named on its standard input, each at the moment when all WORKERS want it.

python -m tests.integration.job_claimer REDIS_URL NAME WORKERS
"""

from __future__ import annotations

import sys
import time

from redis import Redis

from app.training.connection import connect
from app.training.records import JobRecords

MEETING_S = 60.0


def meet(client: Redis, job: str, workers: int) -> None:
    """Wait until that many have come; without it the first process to get a core would take all jobs alone."""
    key, until = f"meeting:{job}", time.monotonic() + MEETING_S
    client.incr(key)
    while int(client.get(key) or 0) < workers:
        if time.monotonic() > until:
            raise TimeoutError(f"nobody else came for {job}")


def main(redis_url: str, name: str, workers: str) -> None:
    jobs = sys.stdin.readline().split()
    with connect(redis_url) as client:
        records = JobRecords(client, lease_s=60)
        for job in jobs:
            meet(client, job, int(workers))
            if records.claim(job, name):
                sys.stdout.write(f"{job}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
