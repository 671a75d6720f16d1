"""Times as people write them: `90d`, `12h`, `30m`, `45s`."""

from __future__ import annotations

import re

import typer

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_FORM = re.compile(r"(\d{1,9})([smhd])\Z")


def parse_duration(text: str) -> float:
    """Seconds. Raises typer.BadParameter."""
    found = _FORM.match(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no time: write 90d, 12h, 30m or 45s")
    return float(int(found.group(1)) * _UNITS[found.group(2)])
