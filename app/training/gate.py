"""The publish gate: is a new prompt better than the one that serves, on the same rows, and by how much.

The interval and the certainty come from a paired bootstrap (Efron and Tibshirani 1993; for language tasks Koehn 2004):
both prompts are scored on the same resampled rows, so what the rows have in common cancels out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.training.evaluate import Measured
from app.training.metrics import RESAMPLES
from app.training.requests import Publish


@dataclass(frozen=True)
class Gain:
    """`gain` in the metric's own unit, positive where the new prompt is better, also where less is better; its 95 %
    `interval`; `certainty`, the share of resamples whose gain exceeds what was asked for."""

    gain: float
    interval: tuple[float, float]
    certainty: float


def gain_over(new: Measured, current: Measured, *, least: float = 0.0, seed: int = 0) -> Gain:
    """How much better `new` did than `current`. Raises ValueError unless both were measured on as many rows by one
    metric; that they are the same rows is the caller's to see to."""
    if (new.metric, new.n) != (current.metric, current.n):
        raise ValueError(f"{new.metric} on {new.n} rows and {current.metric} on {current.n} cannot be paired")
    rng = np.random.default_rng(seed)
    sign = -1.0 if new.metric == "loss" else 1.0
    places = [rng.integers(0, new.n, new.n) for _ in range(RESAMPLES)]
    gains = np.asarray([sign * (new.statistic(at) - current.statistic(at)) for at in places])
    low, high = np.percentile(gains, [2.5, 97.5])
    return Gain(new.rank - current.rank, (float(low), float(high)), float((gains > least).mean()))


def passes(publish: Publish, gain: Gain) -> bool:
    """Whether a gain is what the request asked for. A draw is not."""
    return gain.gain > publish.min_gain and (publish.confidence is None or gain.certainty >= publish.confidence)
