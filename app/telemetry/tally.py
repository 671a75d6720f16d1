"""A histogram that code on a hot path can afford: one bisection and three additions, no lock, no labels.

One thread writes, any thread reads; a scrape in the middle of an addition is off by that one.
"""

from __future__ import annotations

from bisect import bisect_left

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Tally:
    """How often values were at most each of `bounds` (ascending), how many there were, and their sum."""

    __slots__ = ("_hits", "bounds", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.total = 0.0
        self._hits = [0] * (len(bounds) + 1)

    def add(self, value: float) -> None:
        self._hits[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self._hits)

    def buckets(self) -> list[tuple[str, float]]:
        """(bound, values at most that), the last bound `+Inf`: as Prometheus wants them."""
        found, below = [], 0
        for bound, hits in zip((*self.bounds, float("inf")), list(self._hits), strict=True):
            below += hits
            found.append(("+Inf" if bound == float("inf") else str(float(bound)), float(below)))
        return found
