"""When a process that ended is started again, and when it is given up. Pure rules; no clock, no process."""

from __future__ import annotations

import signal
from dataclasses import dataclass

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 10.0
KILLED_DELAY_S = 0.2
SETTLED_S = 10.0
MAX_FAILURES = 3

WRONG_SETTINGS = 2  # exit status of a command line or setting that cannot work, and will not work the next time
OUTSIDE_SIGNALS = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)


@dataclass
class Backoff:
    """Counts failures that follow each other at once.

    A run that ended by itself before it was ready, or within `SETTLED_S`, failed at once; `MAX_FAILURES` in a row are
    the end. A process that someone else killed after it was ready did nothing wrong: it comes back without delay.
    """

    failures: int = 0

    def next_delay(self, *, status: int, lived_s: float, was_ready: bool) -> float | None:
        """Seconds until the next start, or None to give up."""
        if status == WRONG_SETTINGS:
            return None
        if status in OUTSIDE_SIGNALS and was_ready:
            return KILLED_DELAY_S
        if was_ready and lived_s >= SETTLED_S:
            self.failures = 0
        self.failures += 1
        if self.failures >= MAX_FAILURES:
            return None
        delay: float = FIRST_DELAY_S * 2 ** (self.failures - 1)
        return min(delay, MAX_DELAY_S)
