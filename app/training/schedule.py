"""Numbers of a training run: hyperparameters left to "auto", learning rate over time, when to evaluate and to stop."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from app.training.requests import Hyperparameters

SMALL_SET = 1000
AUTO_EPOCHS = 20
MIN_STEPS, MAX_STEPS = 60, 500
"""Bounds of an automatic run: enough for a handful of rows, and no more than a large set needs."""

EVALUATIONS = 20
PATIENCE = 8
"""Evaluations in a run, and how many of them may pass with neither a better score nor a lower loss before it ends."""

WARM_UP_SHARE, WARM_UP_STEPS = 0.06, 500
FINAL_SHARE = 0.05
"""The learning rate rises over 6 % of the steps (500 at most) and falls by a cosine to 5 % of its peak."""


@dataclass(frozen=True)
class Schedule:
    """`learning_rate` is the user's, None where the method chooses; `epochs` may be a fraction."""

    batch_size: int
    epochs: float
    steps: int
    learning_rate: float | None
    num_virtual_tokens: int
    seed: int

    @property
    def evaluate_every(self) -> int:
        return max(1, self.steps // EVALUATIONS)

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at a step, counted from 0."""
        warm_up = max(1, min(WARM_UP_STEPS, round(WARM_UP_SHARE * self.steps)))
        if step < warm_up:
            return (step + 1) / warm_up
        along = (step - warm_up) / max(1, self.steps - warm_up)
        return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * along))

    def describe(self, peak: float) -> dict[str, Any]:
        """The hyperparameters as they were used, by their names in a request, and the number of steps."""
        numbers = asdict(self)
        return {"n_epochs": numbers.pop("epochs")} | numbers | {"learning_rate": peak}


def make_schedule(wanted: Hyperparameters, *, rows: int, num_virtual_tokens: int) -> Schedule:
    """Fill in what was left to "auto" for a training set of `rows` examples."""
    automatic = 16 if rows < SMALL_SET else 32
    batch_size = min(rows, automatic if wanted.batch_size == "auto" else wanted.batch_size)
    per_epoch = -(-rows // batch_size)
    if wanted.n_epochs == "auto":
        steps = min(MAX_STEPS, max(MIN_STEPS, AUTO_EPOCHS * per_epoch))
    else:
        steps = max(1, round(wanted.n_epochs * per_epoch))
    return Schedule(
        batch_size=batch_size,
        epochs=round(steps / per_epoch, 3),
        steps=steps,
        learning_rate=None if wanted.learning_rate == "auto" else float(wanted.learning_rate),
        num_virtual_tokens=num_virtual_tokens,
        seed=0 if wanted.seed == "auto" else wanted.seed,
    )
