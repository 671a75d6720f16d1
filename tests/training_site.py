"""One installation of training for tests: a Redis, a data folder, workers that are processes, and their deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import redis

from app.training.connection import connect
from app.training.datasets import DatasetStore
from app.training.job import Job, JobEvent
from app.training.jobs import JobStore
from prompt_store import PromptStore
from tests.training_data import short_request

LEASE_S = 1.0
PATIENCE_S = 120.0
POLL_S = 0.01

Moment = tuple[str, Callable[[Job], bool]]
"""Where a worker's trainer stands still, and what is so when it is killed there."""

Worker = subprocess.Popen[bytes]


class Installation:
    """One Redis, one data folder, and workers that come and go."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.folder = folder
        self.client: redis.Redis = connect(redis_url)
        self.store = PromptStore.open(redis_url, folder / "blobs")
        self.jobs = JobStore(self.client, self.store, DatasetStore(self.client, folder / "datasets"), lease_s=LEASE_S)
        self.workers: list[Worker] = []
        self._marks = folder / "marks"
        self._marks.mkdir()
        self._environment = os.environ | {
            "CHORUS_REDIS_URL": redis_url,
            "CHORUS_DATA_DIR": str(folder),
            "CHORUS_THREADS": "1",
            "CHORUS_JOB_HEARTBEAT_S": "0.1",
            "CHORUS_JOB_LEASE_S": str(LEASE_S),
            "CHORUS_CHECKPOINT_S": "0.1",
            "CHORUS_LOG_LEVEL": "warning",
            "CHORUS_TEST_FOLDER": str(self._marks),
        }

    def start_worker(self, *, hold: str = "", before: Sequence[str] = (), **environment: str) -> Worker:
        """`hold`: the place where it or its trainer stands still, so that no machine is too slow to kill it there;
        `before`: what runs the command instead."""
        command = [*before, sys.executable, "-m", "tests.training_worker", hold]
        self.workers.append(subprocess.Popen(command, env=self._environment | environment))
        return self.workers[-1]

    def submit(self, **request: object) -> str:
        return self.jobs.submit(short_request(**request))[0].id  # type: ignore[arg-type]

    def wait(self, job_id: str, until: Callable[[Job], bool]) -> Job:
        job = self.jobs.get(job_id)

        def met() -> bool:
            nonlocal job
            job = self.jobs.get(job_id)
            return until(job)

        wait_until(met, lambda: f"{job}")
        return job

    def wait_for_end(self, job_id: str) -> Job:
        return self.wait(job_id, lambda job: job.ended)

    def wait_in_attempt(self, worker: Worker, job_id: str, number: int, until: Callable[[Job], bool]) -> int:
        """Until the attempt of this number learns, or has gone on from there, and `until`: what a record says of the
        attempt before does not count. Returns the id of the worker's trainer, which is alive."""
        self.wait(job_id, lambda job: job.attempt == number and self._has_begun(job) and until(job))
        trainer = trainer_of(worker)
        assert trainer is not None
        assert is_alive(trainer)
        return trainer

    def _has_begun(self, job: Job) -> bool:
        if job.attempt == 1:
            return job.progress is not None
        return any(event.data.get("attempt") == job.attempt for event in self.story(job.id) if "step" in event.data)

    def wait_held(self, pid: int) -> None:
        """Until the process stands at its place."""
        wait_until((self._marks / f"at-{pid}").exists, lambda: f"process {pid} did not come to its place")

    def let_go(self, pid: int) -> None:
        (self._marks / f"go-{pid}").touch()

    def word_of(self, trainer: int) -> str:
        """What became of a trainer's publication; empty while there is none."""
        file = self._marks / f"said-{trainer}"
        return file.read_text() if file.exists() else ""

    def story(self, job_id: str) -> list[JobEvent]:
        return list(self.jobs.events(job_id, limit=5000))

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.store.close()
        self.client.close()


def wait_until(met: Callable[[], bool], told: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s in vain: {told()}"
        time.sleep(POLL_S)


def trainer_of(worker: Worker) -> int | None:
    """Process id of the worker's trainer, if one runs."""
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    return int(children[0]) if children else None


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill(worker: Worker) -> None:
    """`kill -9`, and the trainer must be gone with its worker."""
    trainer = trainer_of(worker)
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 5
    while trainer is not None and is_alive(trainer):
        assert time.monotonic() < deadline, "the trainer outlived its worker"
        time.sleep(POLL_S)


def freeze(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def thaw(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def kill_at(site: Installation, job_id: str, moments: list[Moment]) -> None:
    """One worker after another, each at its moment."""
    for number, (hold, moment) in enumerate(moments, start=1):
        worker = site.start_worker(hold=hold)
        site.wait_in_attempt(worker, job_id, number, moment)
        kill(worker)
        assert not site.jobs.get(job_id).ended


def at_step(number: int) -> Callable[[Job], bool]:
    return lambda job: job.progress is not None and job.progress.step >= number


def assert_one_version(site: Installation, job: Job) -> None:
    assert (job.status, job.error) == ("succeeded", None)
    versions, _ = site.store.list_versions(job.task)
    assert [version.publication for version in versions] == [job.id]
    assert job.result is not None
    assert (job.result.version, job.result.digest) == (versions[0].number, versions[0].digest)
    assert site.store.load(versions[0])["prompt"].shape[1] == 320  # as wide as the bundled model
    ends = [event for event in site.story(job.id) if event.message in ("succeeded", "failed", "cancelled")]
    assert len(ends) == 1


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
