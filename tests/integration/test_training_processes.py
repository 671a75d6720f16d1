"""One job by a worker whose trainer is several processes: the version equals that of a trainer which is alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from app.training.connection import connect
from app.training.datasets import DatasetStore
from app.training.job import Job
from app.training.jobs import JobStore
from prompt_store import PromptStore
from tests.training_data import short_request

PATIENCE_S = 150.0


@pytest.mark.slow
def test_version_learned_by_two_processes_equals_that_of_one(redis_url: str, tmp_path: Path) -> None:
    with connect(redis_url) as client, PromptStore.open(redis_url, tmp_path / "blobs") as store:
        jobs = JobStore(client, store, DatasetStore(client, tmp_path / "datasets"), lease_s=5)
        found = []
        for processes in (1, 2):
            environment = os.environ | {
                "CHORUS_REDIS_URL": redis_url,
                "CHORUS_DATA_DIR": str(tmp_path),
                "CHORUS_THREADS": "2",
                "CHORUS_TRAIN_PROCESSES": str(processes),
                "CHORUS_DEVICE": "cpu",
                "CHORUS_LOG_LEVEL": "warning",
            }
            command = [sys.executable, "-m", "tests.training_worker"]
            worker = subprocess.Popen(command, env=environment)
            try:
                task = f"by{processes}"
                job = _ended(jobs, jobs.submit(short_request(task=task))[0].id)
                assert job.status == "succeeded", job.error
                found.append(store.load(store.get_version(task, 1)))
            finally:
                worker.terminate()
                worker.wait(30)
        alone, together = found
        assert set(alone) == set(together)
        for name, array in alone.items():
            assert np.abs(array - together[name]).max() < 1e-3 * np.abs(array).max()


def _ended(jobs: JobStore, job_id: str) -> Job:
    deadline = time.monotonic() + PATIENCE_S
    while not (job := jobs.get(job_id)).ended:
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    return job
