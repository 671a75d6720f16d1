"""A worker in a process of its own, for tests that kill it: `python -m tests.training_worker [PLACE]`.

Places: "claiming", with a job off the queue and not yet claimed; "claimed", before there is a trainer; or a place of
training_trainer.py.
"""

from __future__ import annotations

import os
import sys

from app.settings import Settings
from app.training import supervision
from app.training.records import JobRecords
from app.training.worker import run_worker

if __name__ == "__main__":
    os.environ["CHORUS_TEST_HOLD"] = "".join(sys.argv[1:])
    from tests.training_hold import hold_at

    _claim = JobRecords.claim

    def _held_claim(self: JobRecords, job_id: str, worker: str) -> int:
        hold_at("claiming")
        attempt = _claim(self, job_id, worker)
        hold_at("claimed")
        return attempt

    JobRecords.claim = _held_claim  # type: ignore[method-assign]
    supervision.TRAINER = (sys.executable, "-m", "tests.training_trainer")
    raise SystemExit(run_worker(Settings()))
