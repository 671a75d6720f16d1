"""Submitting: one job for one wish, its place in the queue, its way through lists."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import redis

from app.errors import IdempotencyConflict, InvalidDataset, JobNotFound, StoreDown
from app.training import keys
from app.training.connection import connect
from app.training.datasets import DatasetStore
from app.training.job import Job
from app.training.jobs import JobStore
from app.training.queue import Dispatcher, open_queue
from app.training.records import JobRecords
from prompt_store import PromptStore
from tests.training_data import LEASE_S, mood_request


def test_submitted_job_waits_in_the_queue(jobs: JobStore, client: redis.Redis) -> None:
    job, created = jobs.submit(mood_request(metadata={"data": "ours"}))
    assert (job.status, created, job.queue_position, job.attempt) == ("queued", True, 0, 0)
    assert (job.task, job.data["rows"], job.data["labels"]) == ("mood", 16, {"bad": 8, "good": 8})
    assert job.metadata == {"data": "ours"}
    entry = open_queue(client).fetch_job(job.id)
    assert entry is not None
    assert (entry.args, entry.kwargs, entry.timeout) == ((job.id,), {}, -1) or entry.args == [job.id]


def test_warnings_of_the_plan_are_events(jobs: JobStore) -> None:
    job, _ = jobs.submit(mood_request())
    warnings = [event.message for event in jobs.events(job.id) if event.type == "warning"]
    assert warnings[0].startswith("only 16 training rows")


def test_bad_rows_leave_no_job(jobs: JobStore) -> None:
    with pytest.raises(InvalidDataset):
        jobs.submit(mood_request(count=3))
    assert jobs.list() == ((), False)


def test_parallel_submissions_with_one_key_make_one_job(
    jobs: JobStore, client: redis.Redis, record_property: Callable[[str, object], None]
) -> None:
    tries = 100
    together = Barrier(tries)

    def submit(_: int) -> tuple[Job, bool]:
        together.wait(30)
        return jobs.submit(mood_request(), "key-1")

    with ThreadPoolExecutor(tries) as pool:
        found = list(pool.map(submit, range(tries)))
    record_property("tries", tries)
    assert len({job.id for job, _ in found}) == 1
    assert sum(created for _, created in found) == 1
    assert len(jobs.list()[0]) == 1
    assert client.llen(open_queue(client).key) == 1


def test_same_key_with_another_body_is_a_conflict(jobs: JobStore) -> None:
    job, _ = jobs.submit(mood_request(), "key")
    with pytest.raises(IdempotencyConflict, match=job.id):
        jobs.submit(mood_request(count=18), "key")
    assert jobs.submit(mood_request(), "key") == (job, False)
    assert jobs.submit(mood_request(), "other key")[1] is True


def test_same_key_finds_its_job_after_it_has_ended(jobs: JobStore) -> None:
    job, _ = jobs.submit(mood_request(), "key")
    jobs.cancel(job.id)
    again, created = jobs.submit(mood_request(), "key")
    assert (again.id, again.status, created) == (job.id, "cancelled", False)


def test_list_is_newest_first_and_goes_page_by_page(jobs: JobStore) -> None:
    ids = [jobs.submit(mood_request())[0].id for _ in range(3)]
    first, more = jobs.list(limit=2)
    assert ([job.id for job in first], more) == (ids[:0:-1], True)
    rest, more = jobs.list(after=first[-1].id, limit=2)
    assert ([job.id for job in rest], more) == (ids[:1], False)
    with pytest.raises(JobNotFound):
        jobs.list(after="job-" + "0" * 20)


def test_cancelled_job_leaves_the_queue(jobs: JobStore, client: redis.Redis) -> None:
    first, second = (jobs.submit(mood_request())[0].id for _ in range(2))
    assert jobs.get(second).queue_position == 1
    jobs.cancel(first)
    assert jobs.get(second).queue_position == 0
    assert client.exists(f"rq:job:{first}") == 0


def test_put_gives_a_job_one_place_however_often(jobs: JobStore, client: redis.Redis) -> None:
    job, _ = jobs.submit(mood_request())
    dispatcher = Dispatcher(client)
    for _ in range(3):
        dispatcher.put(job.id)
    assert client.llen(open_queue(client).key) == 1


def test_put_clears_what_a_dead_worker_left(jobs: JobStore, client: redis.Redis) -> None:
    job, _ = jobs.submit(mood_request())
    queue = open_queue(client)
    client.lmove(queue.key, queue.intermediate_queue_key)
    Dispatcher(client).put(job.id)
    assert client.lrange(queue.key, 0, -1) == [job.id.encode()]
    assert client.llen(queue.intermediate_queue_key) == 0


def test_job_whose_submission_died_before_the_queue_is_still_claimable(
    jobs: JobStore, client: redis.Redis, records: JobRecords
) -> None:
    job, _ = jobs.submit(mood_request())
    client.hset(keys.job(job.id), "status", "validating")
    assert records.claim(job.id, "w") == 1


def test_job_that_is_claimed_before_its_submission_has_said_so_stays_its_workers(
    jobs: JobStore, records: JobRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Dispatcher.put

    def put_and_claim(self: Dispatcher, job_id: str) -> None:
        put(self, job_id)
        assert records.claim(job_id, "w") == 1

    monkeypatch.setattr(Dispatcher, "put", put_and_claim)
    job, created = jobs.submit(mood_request())
    assert (job.status, job.attempt, created) == ("running", 1, True)
    assert records.beat(job.id, 1) == "held"
    assert [event.message for event in jobs.events(job.id) if event.type == "status"] == ["validating", "running"]


def test_redis_out_of_reach_is_reported_as_such(tmp_path: Path, store: PromptStore) -> None:
    with connect(f"unix://{tmp_path}/nothing") as client:
        jobs = JobStore(client, store, DatasetStore(client, tmp_path / "d"), lease_s=LEASE_S)
        with pytest.raises(StoreDown):
            jobs.submit(mood_request())
        with pytest.raises(StoreDown):
            jobs.get("job-" + "0" * 20)
