"""The figures of training that every replica exports: of the queue, of what runs, and of what has ended, each once."""

from __future__ import annotations

import pytest
import redis

from app.api.job_readings import JobReadings
from app.errors import StoreDown
from app.training import JobStore, keys
from app.training.census import NAMES
from app.training.job import JobError
from app.training.queue import open_queue
from app.training.records import JobRecords
from tests.training_data import short_request


def test_nothing_is_counted_as_nothing(jobs: JobStore) -> None:
    assert jobs.census() == dict.fromkeys(NAMES, 0)


def test_waiting_and_running_jobs_are_told_apart(jobs: JobStore, records: JobRecords, client: redis.Redis) -> None:
    first, second = (jobs.submit(short_request())[0].id for _ in range(2))
    client.hincrby(keys.job(first), "dispatched", -30_000)
    found = jobs.census()
    assert (found["train_jobs_waiting"], found["train_jobs_running"]) == (2, 0)
    assert 30 <= found["train_oldest_wait_seconds"] < 60
    client.lpop(open_queue(client).key)
    records.claim(first, "w")
    found = jobs.census()
    assert (found["train_jobs_waiting"], found["train_jobs_running"]) == (1, 1)
    assert found["train_oldest_wait_seconds"] < 30
    assert jobs.get(second).queue_position == 0


def test_job_that_ended_is_counted_once_with_the_time_it_took(
    jobs: JobStore, records: JobRecords, client: redis.Redis
) -> None:
    cancelled, failed = (jobs.submit(short_request())[0].id for _ in range(2))
    jobs.cancel(cancelled)
    attempt = records.claim(failed, "w")
    client.hincrby(keys.job(failed), "started", -5_000)
    for _ in range(2):  # the answer to the first was lost
        records.move(failed, "failed", attempt=attempt, error=JobError(code="x", message="y"))
    found = jobs.census()
    assert (found["train_jobs_cancelled_total"], found["train_jobs_failed_total"]) == (1, 1)
    assert found["train_jobs_succeeded_total"] == found["train_jobs_running"] == 0
    assert found["train_job_seconds_total"] == pytest.approx(5, abs=1)


def test_worker_counts_while_its_own_key_lives(jobs: JobStore, client: redis.Redis) -> None:
    client.sadd("rq:workers:chorus-train", "rq:worker:a", "rq:worker:dead")
    client.hset("rq:worker:a", "birth", "now")
    assert jobs.census()["train_workers"] == 1


class Unreachable:
    """A job store whose Redis comes and goes."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def census(self) -> dict[str, float]:
        if self.error is not None:
            raise self.error
        return {"train_workers": 2}


@pytest.mark.anyio
@pytest.mark.parametrize("error", [StoreDown("away"), RuntimeError("a bug")])
async def test_old_figures_are_not_given_while_redis_is_away(error: Exception) -> None:
    jobs = Unreachable()
    readings = JobReadings(jobs)  # type: ignore[arg-type]
    await readings.read()
    assert readings() == {"train_workers": 2}
    jobs.error = error
    await readings.read()
    assert readings() == {}
    jobs.error = None
    await readings.read()
    assert readings() == {"train_workers": 2}
