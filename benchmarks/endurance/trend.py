"""Whether a quantity that was sampled over time grows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEAST = 3


class Trend(NamedTuple):
    """The line of least squares through samples: its values at the first and the last of them, and their mean."""

    first: float
    last: float
    mean: float

    @property
    def growth(self) -> float:
        return self.last - self.first

    @property
    def share(self) -> float:
        """Growth over the whole window, of the mean."""
        return self.growth / self.mean


def trend(at: Sequence[float], values: Sequence[float]) -> Trend:
    """`at` in seconds, ascending. Raises ValueError for fewer than `LEAST` samples: they say nothing."""
    if len(at) < LEAST:
        raise ValueError(f"{len(at)} samples are too few for a slope")
    slope, zero = statistics.linear_regression(at, values)
    return Trend(slope * at[0] + zero, slope * at[-1] + zero, statistics.mean(values))
