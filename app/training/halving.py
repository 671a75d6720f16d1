"""Successive halving: of many runs that learn together, the worse half stops early (Jamieson and Talwalkar 2016).

At a quarter and at a half of the steps the runs are compared by what each did best on the dev rows so far, and the
better half goes on: of 16 runs 8 see the second quarter and 4 the end, for half of the work of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from app.training.runs import Run

RUNGS = (0.25, 0.5)
"""Shares of the steps at which the worse half ends."""


class SuccessiveHalving:
    """Ends runs. All runs have the same number of steps and dev rows; it holds no state, so a resumed loop goes on.
    `least` of them see the end in any case."""

    def __init__(self, least: int = 1) -> None:
        self._least = least

    def __call__(self, runs: Sequence[Run]) -> None:
        active = [run for run in runs if not run.place.done]
        if not active:
            return
        step, steps = active[0].place.step, active[0].schedule.steps
        for rung, share in enumerate(RUNGS, start=1):
            if step == _step_of(share, steps) < steps:
                self._halve(runs, keep=max(self._least, math.ceil(len(runs) / 2**rung)))

    def round_of(self, run: Run) -> int:
        """The rung, from 1, at which a pruned run ended."""
        steps = run.schedule.steps
        return next(rung for rung, share in enumerate(RUNGS, start=1) if run.place.step <= _step_of(share, steps))

    def _halve(self, runs: Sequence[Run], *, keep: int) -> None:
        """End what is not among the best `keep`. A run that has ended by itself keeps its place among them."""
        for run in runs:
            if run.place.best is None and not run.place.done:
                run.evaluate()
        for run in ranked(runs)[keep:]:
            if not run.place.done:
                run.prune()


def _step_of(share: float, steps: int) -> int:
    return max(1, round(share * steps))


def ranked(runs: Sequence[Run]) -> list[Run]:
    """The best first, by their best judgements; those without one, and those that diverged, last."""

    def key(run: Run) -> tuple[bool, tuple[float, float]]:
        best = None if run.error is not None else run.place.best
        return (best is not None, (-math.inf, -math.inf) if best is None else best.rank)

    return sorted(runs, key=key, reverse=True)
