"""Where a worker or its trainer stands still for a test that kills or freezes it there: in a state that else lasts
milliseconds, and known to be there.

A process at its place leaves the file `at-<its id>` in `CHORUS_TEST_FOLDER`, and goes on once there is `go-<its id>`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

PLACE = os.environ.get("CHORUS_TEST_HOLD", "")
FOLDER = os.environ.get("CHORUS_TEST_FOLDER")
LONGER_THAN_ANY_TEST_S = 600.0
POLL_S = 0.01


def hold_at(place: str) -> None:
    if place != PLACE or FOLDER is None:
        return
    Path(FOLDER, f"at-{os.getpid()}").touch()
    deadline = time.monotonic() + LONGER_THAN_ANY_TEST_S
    while time.monotonic() < deadline and not Path(FOLDER, f"go-{os.getpid()}").exists():
        time.sleep(POLL_S)


def leave_word(text: str) -> None:
    """What a test shall learn of this process: the file `said-<its id>`."""
    if FOLDER is not None:
        Path(FOLDER, f"said-{os.getpid()}").write_text(text)
