"""Corpus BLEU (Papineni et al. 2002) over rows that may be resampled: each row is its counts, and counts add up.

The counts and the smoothing are sacrebleu's defaults (Post 2018): words as mteval-v13a cuts them, n-grams up to 4, the
closest reference's length, and where an order has no match, half of the last order's credit ("exp").
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ORDER = 4
Counts = npt.NDArray[np.int64]

_SPACED = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def words(text: str) -> list[str]:
    """mteval-v13a's words; case is kept."""
    text = f" {text.replace('-' + chr(10), '').replace(chr(10), ' ')} "
    for pattern, spaced in _SPACED:
        text = pattern.sub(spaced, text)
    return text.split()


def counts(references: Sequence[Sequence[str]], given: Sequence[str]) -> Counts:
    """[N, 2 + 2 * ORDER]: length, closest reference's length, matches of each order, n-grams of each order."""
    return np.asarray([_of_row(of, text) for of, text in zip(references, given, strict=True)], np.int64)


def bleu(rows: Counts) -> float:
    """0 to 1."""
    total = rows.sum(0)
    length, wanted = int(total[0]), int(total[1])
    matches, grams = total[2 : 2 + ORDER].tolist(), total[2 + ORDER :].tolist()
    if not length or not matches[0]:
        return 0.0
    logs, credit = 0.0, 1.0
    orders = [(of, out_of) for of, out_of in zip(matches, grams, strict=True) if out_of]
    if len(orders) < ORDER:
        return 0.0
    for of, out_of in orders:
        if not of:
            credit *= 2
        logs += math.log((of or 1 / credit) / out_of)
    brevity = min(0.0, 1 - wanted / length)
    return math.exp(brevity + logs / ORDER)


def _of_row(references: Sequence[str], given: str) -> list[int]:
    mine, theirs = words(given), [words(one) for one in references]
    closest = min((abs(len(one) - len(mine)), len(one)) for one in theirs)[1]
    matches, grams = [], []
    for n in range(1, ORDER + 1):
        found, most = _grams(mine, n), Counter[tuple[str, ...]]()
        for one in theirs:
            most |= _grams(one, n)
        matches.append(sum((found & most).values()))
        grams.append(sum(found.values()))
    return [len(mine), closest, *matches, *grams]


def _grams(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
