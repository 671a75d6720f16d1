"""How fast work is being finished, to tell refused callers when to come back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_WINDOW = 256


class DrainRate:
    """Tokens finished per second over the last few hundred rows; time without any work does not count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[tuple[float, int]] = deque(maxlen=_WINDOW)  # (busy seconds at its end, tokens) of each row
        self._busy_s = 0.0
        self._since: float | None = None

    def begin(self) -> None:
        """There is work again."""
        if self._since is None:
            self._since = self._clock()

    def rest(self) -> None:
        """There is none left."""
        self._busy_s, self._since = self._busy(), None

    def count(self, tokens: int) -> None:
        """A row has ended that took `tokens`."""
        self._ends.append((self._busy(), tokens))

    def seconds_for(self, tokens: int) -> float:
        """Seconds until half of `tokens` have gone, between 1 and 60; 1 while nothing is known."""
        done = sum(tokens for _, tokens in self._ends)
        if len(self._ends) < 2 or not done:
            return 1.0
        span = max(self._busy() - self._ends[0][0], 1e-3)
        return min(60.0, max(1.0, tokens / 2 * span / done))

    def _busy(self) -> float:
        return self._busy_s + (self._clock() - self._since if self._since is not None else 0.0)
