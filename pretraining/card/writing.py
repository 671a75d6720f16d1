"""Markdown's tables, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table between empty lines; a bar within a cell is escaped."""
    lines = [_row(heads), "|" + "---|" * len(heads), *map(_row, rows)]
    return ["", *lines, ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def millions(count: float) -> str:
    """With a unit, three digits: 950, 3.26 k, 114.7 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.{2 if count < 10 * size else 1}f}{unit}"
    return f"{count:.0f}"


def percent(share: float, interval: Sequence[float] | None = None) -> str:
    """`85.1 (83.4–86.6)`, in percent."""
    if interval is None:
        return f"{100 * share:.1f}"
    low, high = interval
    return f"{100 * share:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def power(value: float) -> str:
    """`1.0 · 10^16`."""
    exponent = math.floor(math.log10(value))
    return f"{value / 10**exponent:.1f} · 10^{exponent}"
