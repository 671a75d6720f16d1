"""Endurance, measured: each part starts a service of its own on this machine.

    python -m benchmarks.endurance [--part overload …] [--scale 1.0] [--write docs/results/endurance.md]

`--scale` shortens or lengthens every part: at 1 overload takes 20 s a phase, Redis hangs for 5 minutes, 50 restarts are
made, and prompts are churned for 30 minutes. Parts that are not run keep what the page says of them. Ends with 1,
and the names of the goals, if any was missed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.endurance import outage, overload, restarts, soak
from benchmarks.endurance.verdict import Section
from benchmarks.statistics import conditions

PARTS: dict[str, Callable[[float], Section]] = {
    "overload": lambda scale: overload.run(20 * scale),
    "outage": lambda scale: outage.run(300 * scale),
    "restarts": lambda scale: restarts.run(max(2, round(50 * scale))),
    "soak": lambda scale: soak.run(1800 * scale),
}
TITLE = "# Endurance"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=list(PARTS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    missed = []
    for name in given.part or PARTS:
        found = PARTS[name](given.scale)
        text = f"{found.text}\n\n{conditions()}.\n"
        print(text, flush=True)
        if given.write:
            given.write.write_text(merged(given.write, text), encoding="utf-8")
        missed += [f"{name}: {reason}" for reason in found.missed]
    if missed:
        raise SystemExit("missed:\n" + "\n".join(missed))  # status 1


def merged(page: Path, section: str) -> str:
    """The page with the section in the place of the one of its title, or at the end."""
    old = page.read_text(encoding="utf-8") if page.exists() else f"{TITLE}\n\n`python -m benchmarks.endurance`.\n"
    title = section.partition("\n")[0]
    head, *parts = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    parts = [part for part in parts if part.partition("\n")[0] != title]
    return "\n".join(part.rstrip() + "\n" for part in [head, *parts, section])


if __name__ == "__main__":
    main()
