"""Sets whose copies may hold labels that are not what they say, set right.

`subj`: a copy was met in which the two labels are exchanged, so that sentences of reviews stand as objective and
sentences of plots as subjective. Which it is the words say: 40 % of the reviews' sentences name a film, its director or
its performances, and 7 % of the plots'.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MENDED = ("subj",)
"""Names of the sets that are looked at."""

EXCHANGED = {"objective": "subjective", "subjective": "objective"}
_OF_REVIEWS = re.compile(r"\b(films?|movies?|comedy|drama|performances?|director)\b", re.IGNORECASE)


def mended(name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The set's rows with their labels set right."""
    if name in MENDED and is_exchanged(rows):
        return [{**row, "label": EXCHANGED[row["label"]]} for row in rows]
    return list(rows)


def is_exchanged(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether what is said to be objective speaks of films more often than what is said to be opinion."""
    of, speaking = Counter[str](), Counter[str]()
    for row in rows:
        of[row["label"]] += 1
        speaking[row["label"]] += bool(_OF_REVIEWS.search(row["text"]))
    share = {label: speaking[label] / of[label] if of[label] else 0.0 for label in EXCHANGED}
    return share["objective"] > share["subjective"]
