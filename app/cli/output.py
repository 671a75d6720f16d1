"""How commands speak: tables and sentences for people, plain columns for pipes, JSON for programs.

What comes from the service is shown as it is: never read as markup, control characters made visible.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.errors import CliError

PLAIN_WIDTH = 10_000  # a pipe has no width: columns are as wide as they need
SCORE_BAR_CELLS = 24


class Output:
    """One command's standard output and error. With `as_json` only JSON goes to standard output."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = make_console()
        self.errors = make_console(stderr=True)

    @property
    def live(self) -> bool:
        """True when a person watches a terminal that can redraw a line."""
        return self.console.is_terminal and not self.as_json

    def data(self, value: Any) -> None:
        """Print `value` as one JSON document."""
        sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=None if isinstance(value, str) else 2) + "\n")

    def line(self, value: Any) -> None:
        """Print `value` as one line of JSON."""
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def say(self, message: str, style: str = "") -> None:
        self.console.print(Text(clean(message), style=style), soft_wrap=True)

    def note(self, message: str) -> None:
        """A remark that is not the command's result: standard error, silent for programs."""
        if not self.as_json:
            self.errors.print(Text(clean(message), style="dim"), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
        """Aligned columns; `right` names those of numbers. None is shown as a dash."""
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold", show_edge=False)
        for name in columns:
            table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=False)
        for row in rows:
            table.add_row(*(cell(value) for value in row))
        if self.console.is_terminal:
            self.console.print(table)
            return
        with self.console.capture() as captured:
            self.console.print(table)
        for line in captured.get().splitlines():
            sys.stdout.write(line.rstrip() + "\n")

    def error(self, error: CliError) -> None:
        if self.as_json:
            self.line(error.as_json())  # one line: others may have been printed before it
            return
        self.errors.print(Text.assemble(("Error: ", "bold red"), clean(error.message)), soft_wrap=True)
        facts = [f"{name} {error.detail[name]}" for name in ("code", "param", "request_id") if error.detail.get(name)]
        if facts:
            self.errors.print(Text("       " + clean(" · ".join(facts)), style="dim"), soft_wrap=True)
        if error.fix:
            self.errors.print(Text.assemble(("Fix:   ", "bold"), clean(error.fix)), soft_wrap=True)


def make_console(*, stderr: bool = False) -> Console:
    """A console without guessing: markup and highlighting off, width unlimited where nobody looks."""
    stream = sys.stderr if stderr else sys.stdout
    watched = stream.isatty() and os.environ.get("TERM") != "dumb"
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=None if watched else PLAIN_WIDTH)


def cell(value: Any) -> Text:
    return value if isinstance(value, Text) else Text("–" if value is None or value == "" else clean(str(value)))


def clean(text: str) -> str:
    """`text` with control characters (escape sequences of a terminal among them) made visible; line breaks stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def bar(share: float, cells: int = SCORE_BAR_CELLS) -> str:
    """A horizontal bar for a number from 0 to 1, in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * cells * 8)
    full, part = divmod(eighths, 8)
    return "█" * full + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[part]


def spark(values: Sequence[float], width: int = 16) -> str:
    """The whole course of `values` in at most `width` blocks, scaled between the least and the greatest block."""
    known = [value for value in values if value == value]
    if not known:
        return ""
    cuts = [round(place * len(known) / min(width, len(known))) for place in range(min(width, len(known)) + 1)]
    shown = [sum(known[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) / span * 7)] for value in shown)
