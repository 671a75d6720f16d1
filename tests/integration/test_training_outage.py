"""A worker loses Redis longer than its lease while its trainer computes on: it gives the job up, and the job has one
version in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.training.session import PATIENCE_S
from tests.redis_server import RedisServer
from tests.training_site import (
    LEASE_S,
    Installation,
    assert_one_version,
    assert_resumed,
    at_step,
    freeze,
    is_alive,
    thaw,
    trainer_of,
    wait_until,
)

TIMEOUT = "?socket_timeout=1.5"
"""How long one wait for an answer is, in seconds: more than the worker's look at an empty queue."""


@pytest.fixture
def site(server: RedisServer, tmp_path: Path) -> Iterator[Installation]:
    site = Installation(server.url + TIMEOUT, tmp_path)
    yield site
    server.thaw()
    site.close()


@pytest.mark.chaos
def test_worker_that_loses_redis_while_it_learns_stops_its_trainer_and_goes_on_when_it_is_back(
    site: Installation, server: RedisServer
) -> None:
    job_id = site.submit(steps=300)
    worker = site.start_worker()
    site.wait_in_attempt(worker, job_id, 1, at_step(5))
    server.freeze()
    began = time.monotonic()
    wait_until(lambda: trainer_of(worker) is None, lambda: "the trainer computes on without a lease")
    assert time.monotonic() - began < PATIENCE_S - 10, "it waited as long as a trainer does that nobody stops"
    assert worker.poll() is None
    server.thaw()
    job = site.wait_for_end(job_id)
    assert job.attempt >= 2
    assert_one_version(site, job)
    assert_resumed(site, job_id)


@pytest.mark.chaos
def test_publication_that_a_lost_redis_keeps_waiting_is_given_up_and_made_once(
    site: Installation, server: RedisServer, record_property: Callable[[str, object], None]
) -> None:
    """What was sent may still be carried out when Redis wakes up, with nobody left to hear of it."""
    tries = 3
    for turn in range(tries):
        job_id = site.submit(steps=12, task=f"mood-{turn}")
        worker = site.start_worker(hold="publishing")
        trainer = site.wait_in_attempt(worker, job_id, 1, lambda job: job.status == "publishing")
        server.freeze()
        site.let_go(trainer)
        wait_until(lambda worker=worker: trainer_of(worker) is None, lambda: "the trainer waits on without a lease")
        assert site.word_of(trainer) == "StoreUnavailable"
        worker.kill()
        worker.wait()
        server.thaw()
        other = site.start_worker()
        job = site.wait_for_end(job_id)
        assert job.attempt == 2
        assert_one_version(site, job)
        other.kill()
        other.wait()
    record_property("tries", tries)


@pytest.mark.chaos
def test_publication_of_a_worker_that_lost_redis_is_fenced_when_another_has_the_job(
    site: Installation, server: RedisServer
) -> None:
    """Its trainer stands still through the outage; when it wakes, another attempt has begun."""
    job_id = site.submit(steps=12)
    worker = site.start_worker(hold="publishing")
    trainer = site.wait_in_attempt(worker, job_id, 1, lambda job: job.status == "publishing")
    freeze(trainer, worker.pid)
    server.freeze()
    time.sleep(2 * LEASE_S)
    server.thaw()
    site.start_worker()
    site.wait(job_id, lambda job: job.attempt == 2)
    site.let_go(trainer)
    thaw(trainer)
    wait_until(lambda: not is_alive(trainer), lambda: "the trainer of the lost claim goes on")
    assert site.word_of(trainer) == "Fenced"
    thaw(worker.pid)
    job = site.wait_for_end(job_id)
    assert job.attempt == 2
    assert_one_version(site, job)
