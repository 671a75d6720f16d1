"""Small statistics that several benchmarks report."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import torch


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z = 1.959964
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def percent(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def majority_share(labels: Sequence[str]) -> str:
    return percent(Counter(labels).most_common(1)[0][1], len(labels))


def conditions() -> str:
    """One line on where and when figures were taken."""
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {torch.get_num_threads()} CPU threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
