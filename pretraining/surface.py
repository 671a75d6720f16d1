"""How a row's text may look: as written, cut into tokens, in small letters, without its full stop.

Data sets differ in such things, and even the splits of one set do: its train rows may read "a dog." and its test rows
"a dog . ". A model that saw only one of them is surprised by the other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Style = Callable[[str], str]

_PUNCTUATION = re.compile(r"\s*([.,!?;:()\"])\s*")
_CONTRACTION = re.compile(r"(\w)('(?:s|re|ve|ll|d|m)\b|n't\b)")
_SPACE_BEFORE = re.compile(r"\s+([.,!?;:)])|(\()\s+|\s+('(?:s|re|ve|ll|d|m)\b|n't\b)")


def as_written(text: str) -> str:
    return text.strip()


def spaced(text: str) -> str:
    """Tokens apart: `A dog , wet , can 't swim .`"""
    apart = _PUNCTUATION.sub(r" \1 ", _CONTRACTION.sub(r"\1 \2", text))
    return " ".join(apart.split())


def spaced_open(text: str) -> str:
    """Tokens apart, with the space after the last that some files keep."""
    return spaced(text) + " "


def closed(text: str) -> str:
    """Tokens together again: the inverse of `spaced`, as far as there is one."""
    return _SPACE_BEFORE.sub(lambda found: found[1] or found[2] or found[3], text).strip()


def small(text: str) -> str:
    return spaced(text).lower()


def without_stop(text: str) -> str:
    return closed(text).rstrip(" .") or text.strip()


_STYLES: tuple[tuple[Style, float], ...] = (
    (as_written, 0.45),
    (spaced, 0.12),
    (spaced_open, 0.15),
    (closed, 0.1),
    (small, 0.1),
    (without_stop, 0.08),
)


def draw_style(rng: random.Random) -> Style:
    """One style for all fields of a row: they come from one file."""
    styles, shares = zip(*_STYLES, strict=True)
    style: Style = rng.choices(styles, shares)[0]
    return style
