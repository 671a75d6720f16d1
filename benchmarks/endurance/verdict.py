"""What a part found beside what was wanted: a table, and by name what was missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Found(NamedTuple):
    """One line of a part's table. `met` is None for a figure that has no goal."""

    name: str
    measured: str
    goal: str = ""
    met: bool | None = None


class Section(NamedTuple):
    """A part of the page, and the names of the goals that it missed."""

    text: str
    missed: tuple[str, ...]


def section(title: str, told: str, found: Sequence[Found], *, after: Sequence[str] = ()) -> Section:
    """`told` says how it was measured; `after` are lines below the table. The verdict is the last line."""
    rows = [f"| {one.name} | {one.measured} | {one.goal} |" for one in found]
    missed = tuple(f"{one.name}: {one.measured}, wanted {one.goal}" for one in found if one.met is False)
    verdict = f"**Missed:** {'; '.join(missed)}." if missed else "All goals are met."
    lines = [f"## {title}", "", told, "", "| | measured | goal |", "|---|---|---|", *rows, "", *after, verdict]
    return Section("\n".join(lines), missed)
