"""A worker in a process of its own, for tests that kill it: `python -m tests.training_worker [PLACE]`, a place of
training_trainer.py."""

from __future__ import annotations

import os
import sys

from app.settings import Settings
from app.training import supervision
from app.training.worker import run_worker

if __name__ == "__main__":
    os.environ["CHORUS_TEST_HOLD"] = "".join(sys.argv[1:])
    supervision.TRAINER = (sys.executable, "-m", "tests.training_trainer")
    raise SystemExit(run_worker(Settings()))
