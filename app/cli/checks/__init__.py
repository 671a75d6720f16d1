"""What `chorus doctor` looks at. Each check finds one fact, says whether it will do, and names the fix if not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is the one command or setting that helps; None where nothing is wrong."""

    name: str
    state: State
    found: str
    fix: str | None = None


def human(size: float) -> str:
    """A number of bytes for people: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def human_days(seconds: float) -> str:
    """A time for people: `3 days`, `5 hours`."""
    days, hours = int(seconds // 86_400), int(seconds // 3600)
    count, unit = (days, "day") if days else (hours, "hour")
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
