"""Metrics of answers and their 95 % intervals. Pure functions over lists and arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

Z95 = 1.959963984540054
RESAMPLES = 1000

_WORD = re.compile(r"\w+", re.UNICODE)


def accuracy(expected: Sequence[str], given: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(expected, given, strict=True)) / len(expected)


def macro_f1(expected: Sequence[str], given: Sequence[str]) -> float:
    """Mean F1 over the labels that occur among the expected ones."""
    pairs = list(zip(expected, given, strict=True))
    total = 0.0
    labels = sorted(set(expected))
    for label in labels:
        hits = sum(a == label == b for a, b in pairs)
        claimed, present = sum(b == label for _, b in pairs), sum(a == label for a, _ in pairs)
        total += 2 * hits / (claimed + present) if hits else 0.0
    return total / len(labels)


def exact_match(expected: str, given: str) -> float:
    """1.0 if equal up to white space at the ends and between words."""
    return float(expected.split() == given.split())


def rouge_l(expected: str, given: str) -> float:
    """F1 of the longest common subsequence of words, case ignored."""
    a, b = _WORD.findall(expected.lower()), _WORD.findall(given.lower())
    common = _common_subsequence(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share of n."""
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(n: int, statistic: Callable[[np.ndarray], float], *, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of `statistic` over resamples of n places (an index array each)."""
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(RESAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
