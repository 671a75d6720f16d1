"""How many jobs wait, run and have ended, for the metrics: a few look-ups, however many jobs there are."""

from __future__ import annotations

import redis
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from app.training import keys
from app.training.queue import open_queue

NAMES = (
    *("train_jobs_waiting", "train_jobs_running", "train_oldest_wait_seconds", "train_workers"),
    *("train_jobs_succeeded_total", "train_jobs_failed_total", "train_jobs_cancelled_total"),
    "train_job_seconds_total",
)
"""What is counted. All replicas of one Redis say the same: take the largest, not the sum."""


def take_census(client: redis.Redis) -> dict[str, float]:
    """By the names above. Waiting jobs are those of the queue; a job that has lost its place there, and waits for the
    reaper to give it another, counts as running meanwhile."""
    queue = open_queue(client)
    with client.pipeline(transaction=False) as ask:
        ask.llen(queue.key)
        ask.scard(keys.LIVE)
        ask.hgetall(keys.ENDED)
        ask.lindex(queue.key, 0)
        ask.smembers(WORKERS_BY_QUEUE_KEY % queue.name)
        ask.time()
        waiting, live, ended, oldest, workers, now = ask.execute()
    with client.pipeline(transaction=False) as ask:
        for worker in workers:  # a worker that has died is named until another one is born; its own key lapses
            ask.exists(worker)
        if oldest is not None:
            ask.hget(keys.job(oldest.decode()), "dispatched")
        found = ask.execute()
    since = found.pop() if oldest is not None else None
    counts = {name.decode(): int(value) for name, value in ended.items()}
    return {
        "train_jobs_waiting": waiting,
        "train_jobs_running": max(0, live - waiting),
        "train_oldest_wait_seconds": 0.0 if since is None else max(0.0, now[0] + now[1] / 1e6 - int(since) / 1000),
        "train_workers": sum(found),
        **{f"train_jobs_{status}_total": counts.get(status, 0) for status in ("succeeded", "failed", "cancelled")},
        "train_job_seconds_total": counts.get("ms", 0) / 1000,
    }
