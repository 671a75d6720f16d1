"""Answers → scores with 95 % bootstrap intervals, and whether one contestant's beat another's on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.compare import bleu
from app.training.evaluate import Measured
from app.training.gate import Gain, gain_over
from app.training.metrics import bootstrap, exact_match, macro_f1, rouge_l
from prompt_store.models import Metric

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """`value` and `interval` from 0 to 1."""

    value: float
    interval: tuple[float, float]

    def describe(self) -> dict[str, Any]:
        return {"score": self.value, "interval": list(self.interval)}


def score(metric: Metric, references: Sequence[Sequence[str]], given: Sequence[str]) -> dict[str, Score]:
    """By the metric, which comes first; free text also by BLEU."""
    found = {metric: _scored(measured(metric, references, given))}
    if metric == "rouge_l":
        rows = bleu.counts(references, given)
        value = bleu.bleu(rows)
        found |= {"bleu": Score(value, bootstrap(len(rows), lambda at: bleu.bleu(rows[at])))}  # type: ignore[dict-item]
    return {str(name): of for name, of in found.items()}


def measured(metric: Metric, references: Sequence[Sequence[str]], given: Sequence[str]) -> Measured:
    """Answers as something that can be paired. The best of several references counts."""
    if metric == "macro_f1":
        expected, said = np.asarray([of[0] for of in references]), np.asarray(given)
        return _measured(metric, len(said), lambda at: macro_f1(expected[at].tolist(), said[at].tolist()))
    return of_rows(metric, credits(metric, references, given))


def credits(metric: Metric, references: Sequence[Sequence[str]], given: Sequence[str]) -> Floats:
    """What each row adds to a metric that is a mean over rows, 0 to 1."""
    judge = {"accuracy": lambda a, b: float(a == b), "exact_match": exact_match, "rouge_l": rouge_l}[metric]
    best = [max(judge(one, text) for one in of) for of, text in zip(references, given, strict=True)]
    return np.asarray(best, np.float64)


def of_rows(metric: Metric, values: Floats) -> Measured:
    return _measured(metric, len(values), lambda at: float(values[at].mean()))


def mean_of_members(metric: Metric, references: Sequence[Sequence[str]], members: Sequence[Sequence[str]]) -> Measured:
    """What a member scores on average, as one thing to pair with."""
    all_of = [measured(metric, references, given) for given in members]
    return _measured(metric, all_of[0].n, lambda at: float(np.mean([one.statistic(at) for one in all_of])))


def compare(new: Measured, old: Measured) -> Gain:
    """Paired bootstrap on the same rows (see `app/training/gate.py`)."""
    return gain_over(new, old)


def describe_gain(gain: Gain) -> Mapping[str, Any]:
    return {"gain": gain.gain, "interval": list(gain.interval), "certainty": gain.certainty}


def _measured(metric: Metric, n: int, statistic: Any) -> Measured:
    return Measured(metric, statistic(np.arange(n)), n, bootstrap(n, statistic), 0.0, statistic)


def _scored(found: Measured) -> Score:
    return Score(found.score, found.interval)
