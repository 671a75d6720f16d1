"""How fast rows are being finished, to tell refused callers when to come back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_WINDOW = 256


class DrainRate:
    """Rows finished per second over the last few hundred rows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=_WINDOW)

    def count(self) -> None:
        self._ends.append(self._clock())

    def seconds_for(self, rows: int) -> float:
        """Seconds until half of `rows` have gone, between 1 and 60; 1 while nothing is known."""
        if len(self._ends) < 2:
            return 1.0
        span = max(self._clock() - self._ends[0], 1e-3)
        return min(60.0, max(1.0, rows / 2 * span / len(self._ends)))
