"""Leases are counted on the server's clock: a worker or an API whose wall clock is set takes no job from anybody."""

from __future__ import annotations

import time

import pytest

from app.training.jobs import JobStore
from app.training.records import JobRecords
from tests.training_data import mood_request


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_wall_clock_that_jumps_ends_no_lease(
    jobs: JobStore, records: JobRecords, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    job, _ = jobs.submit(mood_request())
    attempt = records.claim(job.id, "w1")
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
    assert records.take_back(job.id, attempt=None, reason="lost") != "queued"
    assert records.beat(job.id, attempt) == "held"
    assert records.claim(job.id, "w2") == 0
    assert records.get(job.id).status == "running"
