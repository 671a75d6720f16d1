"""A worker that only claims: every job named on its standard input, as soon as a line says `go`.

python -m tests.integration.job_claimer REDIS_URL NAME
"""

from __future__ import annotations

import sys

from app.training.connection import connect
from app.training.records import JobRecords


def main(redis_url: str, name: str) -> None:
    jobs = sys.stdin.readline().split()
    with connect(redis_url) as client:
        records = JobRecords(client, lease_s=60)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        for job in jobs:
            if records.claim(job, name):
                sys.stdout.write(f"{job}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
