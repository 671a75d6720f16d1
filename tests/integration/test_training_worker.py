"""Workers as real processes, killed at the worst moments: each job ends once, with one version, resumed and not begun
again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from app.training.connection import connect
from app.training.datasets import DatasetStore
from app.training.job import Job, JobEvent
from app.training.jobs import JobStore
from app.training.queue import open_queue
from prompt_store import PromptStore
from tests.training_data import short_request

LEASE_S = 1.0
Moment = tuple[str, Callable[[Job], bool]]
"""Where a worker's trainer stands still, and what is so when it is killed there."""
PATIENCE_S = 120.0


class Installation:
    """One Redis, one data folder, and workers that come and go."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.folder = folder
        self.client: redis.Redis = connect(redis_url)
        self.store = PromptStore.open(redis_url, folder / "blobs")
        self.jobs = JobStore(self.client, self.store, DatasetStore(self.client, folder / "datasets"), lease_s=LEASE_S)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._environment = os.environ | {
            "CHORUS_REDIS_URL": redis_url,
            "CHORUS_DATA_DIR": str(folder),
            "CHORUS_THREADS": "1",
            "CHORUS_JOB_HEARTBEAT_S": "0.1",
            "CHORUS_JOB_LEASE_S": str(LEASE_S),
            "CHORUS_CHECKPOINT_S": "0.1",
            "CHORUS_LOG_LEVEL": "warning",
        }

    def start_worker(self, *, hold: str = "") -> subprocess.Popen[bytes]:
        """`hold`: the place where its trainer stands still, so that no machine is too slow to kill it there."""
        command = [sys.executable, "-m", "tests.training_worker", hold]
        self.workers.append(subprocess.Popen(command, env=self._environment))
        return self.workers[-1]

    def submit(self, **request: object) -> str:
        return self.jobs.submit(short_request(**request))[0].id  # type: ignore[arg-type]

    def wait(self, job_id: str, until: Callable[[Job], bool]) -> Job:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            job = self.jobs.get(job_id)
            if until(job):
                return job
            time.sleep(0.01)
        raise AssertionError(f"waited {PATIENCE_S} s in vain: {job}")

    def wait_for_end(self, job_id: str) -> Job:
        return self.wait(job_id, lambda job: job.ended)

    def story(self, job_id: str) -> list[JobEvent]:
        return list(self.jobs.events(job_id, limit=5000))

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.store.close()
        self.client.close()


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Iterator[Installation]:
    site = Installation(redis_url, tmp_path)
    yield site
    site.close()


def trainer_of(worker: subprocess.Popen[bytes]) -> int | None:
    """Process id of the worker's trainer, if one runs."""
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    return int(children[0]) if children else None


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill(worker: subprocess.Popen[bytes]) -> None:
    """`kill -9`, and the trainer must be gone with its worker."""
    trainer = trainer_of(worker)
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 5
    while trainer is not None and is_alive(trainer):
        assert time.monotonic() < deadline, "the trainer outlived its worker"
        time.sleep(0.01)


def kill_at(site: Installation, job_id: str, moments: list[Moment]) -> None:
    """One worker after another, each at its moment."""
    for hold, moment in moments:
        worker = site.start_worker(hold=hold)
        site.wait(job_id, moment)
        kill(worker)
        assert not site.jobs.get(job_id).ended


def assert_one_version(site: Installation, job: Job) -> None:
    assert (job.status, job.error) == ("succeeded", None)
    versions, _ = site.store.list_versions(job.task)
    assert [version.publication for version in versions] == [job.id]
    assert job.result is not None
    assert (job.result.version, job.result.digest) == (versions[0].number, versions[0].digest)
    assert site.store.load(versions[0])["prompt"].shape[1] == 256
    ends = [event for event in site.story(job.id) if event.message in ("succeeded", "failed", "cancelled")]
    assert len(ends) == 1


def at_step(number: int) -> Callable[[Job], bool]:
    return lambda job: job.progress is not None and job.progress.step >= number


def assert_resumed(site: Installation, job_id: str) -> None:
    """Once ten steps were made, no attempt began anew, and none began before the one before it."""
    told = [event for event in site.story(job_id) if event.type == "progress" or "step" in event.data]
    made, begun = 0, 0
    for event in told:
        if "attempt" in event.data:
            assert event.data["step"] >= begun, event
            assert made < 10 or event.data["step"] > 0, event
            begun = event.data["step"]
        made = max(made, event.data["step"])


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
    assert list((site.folder / "jobs").iterdir()) == []
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


def test_sweep_killed_while_it_learns_and_behind_its_commit_publishes_its_best_once(site: Installation) -> None:
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


@pytest.mark.chaos
def test_frozen_worker_that_comes_back_is_fenced(site: Installation) -> None:
    job_id = site.submit(steps=60)
    frozen = site.start_worker()
    site.wait(job_id, at_step(5))
    trainer = trainer_of(frozen)
    assert trainer is not None
    for pid in (trainer, frozen.pid):
        os.kill(pid, signal.SIGSTOP)
    site.start_worker()
    site.wait(job_id, lambda job: job.attempt == 2 and at_step(1)(job))
    for pid in (frozen.pid, trainer):
        os.kill(pid, signal.SIGCONT)
    job = site.wait_for_end(job_id)
    assert job.attempt == 2
    assert_one_version(site, job)
    assert frozen.poll() is None


JOBS_A_STATE, KILLS_A_JOB = 6, 4  # one more loss without a newer checkpoint would end the job


@pytest.mark.chaos
@pytest.mark.parametrize("state", ["queued", "running", "evaluating", "publishing"])
def test_worker_killed_many_times_in_one_state_publishes_once(
    site: Installation, state: str, record_property: Callable[[str, object], None]
) -> None:
    """With the tests around, more than 100 kills over all states."""
    for turn in range(JOBS_A_STATE):
        job_id = site.submit(steps=200 if state == "running" else 12, task=f"mood-{turn}")
        for kills in range(KILLS_A_JOB):
            worker = site.start_worker(hold="evaluating" if state in ("queued", "running") else state)
            if state == "queued":
                time.sleep(0.1 * kills)
            elif state == "running":
                site.wait(job_id, at_step(20 * (kills + 1)))
            else:
                site.wait(job_id, lambda job: job.status == state)
            kill(worker)
        last = site.start_worker()
        job = site.wait_for_end(job_id)
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
