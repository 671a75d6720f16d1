"""Workers as real processes, killed at the worst moments: each job ends once, with one version, resumed and not begun
again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.training.job import Job
from app.training.queue import open_queue
from tests.training_site import (
    Installation,
    Moment,
    assert_one_version,
    assert_resumed,
    at_step,
    freeze,
    is_alive,
    kill,
    kill_at,
    thaw,
    trainer_of,
    wait_until,
)


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Iterator[Installation]:
    site = Installation(redis_url, tmp_path)
    yield site
    site.close()


def test_worker_killed_three_times_loses_nothing_and_publishes_once(
    site: Installation, record_property: Callable[[str, object], None]
) -> None:
    job_id = site.submit(steps=40)
    moments: list[Moment] = [
        ("evaluating", at_step(10)),
        ("evaluating", lambda job: job.status == "evaluating"),
        ("published", lambda job: site.store.find_publication(job_id) is not None),
    ]
    kill_at(site, job_id, moments)
    site.start_worker()
    job = site.wait_for_end(job_id)
    assert job.attempt == 4
    assert_one_version(site, job)
    assert_resumed(site, job_id)
    site.wait(job_id, lambda _: not list((site.folder / "jobs").iterdir()))
    record_property("tries", len(moments))


def test_worker_asked_to_stop_saves_its_place_and_the_next_goes_on(site: Installation) -> None:
    """And a job that lost its place in the queue before any of this is found by the first of them."""
    job_id = site.submit(steps=60)
    site.client.delete(open_queue(site.client).key)
    worker = site.start_worker()
    job = site.wait(job_id, at_step(5))
    assert job.status == "running"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 0
    job = site.jobs.get(job_id)
    assert (job.status, job.attempt, job.queue_position) == ("queued", 1, 0)
    site.start_worker()
    job = site.wait_for_end(job_id)
    assert job.attempt == 2
    assert_one_version(site, job)
    assert_resumed(site, job_id)


def test_sweep_killed_while_it_learns_and_behind_its_commit_publishes_its_best_once(
    site: Installation, record_property: Callable[[str, object], None]
) -> None:
    sweep = {"num_virtual_tokens": [3, 5], "seed": [1, 2]}
    numbers = {"batch_size": 4, "n_epochs": 10}
    job_id = site.submit(steps=40, sweep=sweep, hyperparameters=numbers, publish={"top_k": 2})
    moments: list[Moment] = [
        ("publishing", at_step(5)),
        ("publishing", at_step(18)),
        ("published", lambda job: site.store.find_publication(job_id) is not None),
    ]
    kill_at(site, job_id, moments)
    site.start_worker()
    job = site.wait_for_end(job_id)
    assert (job.status, job.error, job.attempt) == ("succeeded", None, 4)
    versions, _ = site.store.list_versions(job.task)
    assert versions == site.store.find_publications(job_id)
    assert job.result is not None
    assert [one.version for one in job.result.ensemble or ()] == [one.number for one in versions] == [1, 2]
    assert site.store.get_alias(job.task, "prod").versions == (1, 2)
    states = [row["state"] for row in job.result.sweep or ()]
    assert (states.count("won"), states.count("chosen"), len(states)) == (1, 1, 4)
    assert_resumed(site, job_id)
    record_property("tries", len(moments))


def test_running_job_is_cancelled_and_leaves_nothing(site: Installation) -> None:
    job_id = site.submit(steps=2000)
    other = site.submit(steps=4, task="other")
    worker = site.start_worker()
    site.wait(job_id, at_step(3))
    assert site.jobs.cancel(job_id).status == "running"
    job = site.wait_for_end(job_id)
    assert (job.status, job.result) == ("cancelled", None)
    assert site.store.find_publication(job_id) is None
    assert_one_version(site, site.wait_for_end(other))
    site.wait(other, lambda _: not list((site.folder / "jobs").iterdir()))
    assert worker.poll() is None


@pytest.mark.chaos
def test_trainer_that_dies_alone_is_started_again_where_it_was(site: Installation) -> None:
    job_id = site.submit(steps=60)
    worker = site.start_worker()
    site.wait(job_id, at_step(10))
    trainer = trainer_of(worker)
    assert trainer is not None
    os.kill(trainer, signal.SIGKILL)
    job = site.wait_for_end(job_id)
    assert job.attempt == 2
    assert_one_version(site, job)
    assert_resumed(site, job_id)


ZOMBIES = [(place, late) for place in ("running", "evaluating", "publishing") for late in (False, True) * 2]


@pytest.mark.chaos
def test_frozen_worker_that_comes_back_is_fenced(
    site: Installation, record_property: Callable[[str, object], None]
) -> None:
    """SIGSTOP while it learns, evaluates, or is about to publish; SIGCONT when another has the job, or has ended it."""
    for turn, (place, late) in enumerate(ZOMBIES):
        job_id = site.submit(steps=200 if place == "running" else 12, task=f"mood-{turn}")
        frozen = site.start_worker(hold="evaluating" if place == "running" else place)
        moment = at_step(5) if place == "running" else is_in(place)
        trainer = site.wait_in_attempt(frozen, job_id, 1, moment)
        freeze(trainer, frozen.pid)
        other = site.start_worker()
        site.wait(job_id, lambda job, late=late: job.attempt == 2 and (job.ended or not late))
        site.let_go(trainer)
        thaw(trainer)  # alone: it must learn by itself that it has lost its claim
        wait_until(lambda trainer=trainer: not is_alive(trainer), lambda: "the zombie goes on")
        assert site.word_of(trainer) == ("Fenced" if place == "publishing" else "")
        thaw(frozen.pid)
        job = site.wait_for_end(job_id)
        assert job.attempt == 2
        assert_one_version(site, job)
        assert (frozen.poll(), other.poll()) == (None, None)
        kill(frozen)
        kill(other)
    record_property("tries", len(ZOMBIES))


def is_in(state: str) -> Callable[[Job], bool]:
    return lambda job: job.status == state


JOBS_A_STATE, KILLS_A_JOB = 6, 4  # one more loss without a newer checkpoint would end the job


def kill_before_its_trainer(site: Installation, job_id: str, place: str) -> None:
    """A worker that has the job off the queue, and has not claimed it yet, or only just."""
    before = site.jobs.get(job_id).attempt
    worker = site.start_worker(hold=place)
    site.wait_held(worker.pid)
    job = site.jobs.get(job_id)
    assert (job.status, job.attempt) == (("queued", before) if place == "claiming" else ("running", before + 1))
    assert trainer_of(worker) is None
    kill(worker)


@pytest.mark.chaos
def test_worker_killed_many_times_around_its_claim_publishes_once(
    site: Installation, record_property: Callable[[str, object], None]
) -> None:
    for turn in range(JOBS_A_STATE):
        job_id = site.submit(steps=12, task=f"mood-{turn}")
        for kills in range(KILLS_A_JOB):
            kill_before_its_trainer(site, job_id, ("claiming", "claimed")[kills % 2])
        last = site.start_worker()
        job = site.wait_for_end(job_id)
        assert job.attempt == 1 + KILLS_A_JOB // 2
        assert_one_version(site, job)
        kill(last)
    record_property("tries", JOBS_A_STATE * KILLS_A_JOB)


@pytest.mark.chaos
@pytest.mark.parametrize("state", ["running", "evaluating", "publishing"])
def test_worker_killed_many_times_in_one_state_publishes_once(
    site: Installation, state: str, record_property: Callable[[str, object], None]
) -> None:
    """With the tests around, more than 100 kills over all states, each of a worker whose trainer was there."""
    for turn in range(JOBS_A_STATE):
        job_id = site.submit(steps=200 if state == "running" else 12, task=f"mood-{turn}")
        for kills in range(1, 1 + KILLS_A_JOB):
            worker = site.start_worker(hold="evaluating" if state == "running" else state)
            moment = at_step(20 * kills) if state == "running" else is_in(state)
            site.wait_in_attempt(worker, job_id, kills, moment)
            kill(worker)
        last = site.start_worker()
        job = site.wait_for_end(job_id)
        assert job.attempt == KILLS_A_JOB + 1
        assert_one_version(site, job)
        assert_resumed(site, job_id)
        kill(last)
    record_property("tries", JOBS_A_STATE * KILLS_A_JOB)


@pytest.mark.chaos
def test_worker_killed_between_commit_and_word_publishes_once(
    site: Installation, record_property: Callable[[str, object], None]
) -> None:
    jobs = [site.submit(task=f"mood-{n}") for n in range(4)]
    for job_id in jobs:
        worker = site.start_worker(hold="published")
        site.wait(job_id, lambda job: site.store.find_publication(job.id) is not None)
        kill(worker)
        assert site.jobs.get(job_id).status == "publishing"
    site.start_worker()
    for job_id in jobs:
        assert_one_version(site, site.wait_for_end(job_id))
    record_property("tries", len(jobs))
