"""Sweeps on the command line: what `--sweep` says, and the table of what became of the members."""

from __future__ import annotations

import json
from typing import Any

from app.cli.errors import CliError, Exit
from app.cli.output import Output

WHOLE = ("template",)
"""Values that may hold commas: one to an option, unless they come as a JSON list."""


def parse_sweep(given: list[str], *, keep_all: bool) -> dict[str, Any] | None:
    """`learning_rate=0.1,0.3`, `method=p_tuning,residual`, `method=[{"type": …}]`; one key several times adds up."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name or not value:
            raise CliError(f"--sweep takes KEY=A,B, not {text!r}", Exit.USAGE)
        found[name] = found.get(name, []) + _values(name, value)
    if not found:
        if keep_all:
            raise CliError("--keep-all belongs to a sweep", Exit.USAGE, fix="chorus train … --sweep seed=1,2,3")
        return None
    return found | {"halving": False} if keep_all else found


def _values(name: str, text: str) -> list[Any]:
    whole = _json(text)
    if isinstance(whole, list):
        return whole
    parts = [text] if name in WHOLE or isinstance(whole, dict) else [part.strip() for part in text.split(",")]
    values = [_json(part) for part in parts]
    return [{"type": value} if name == "method" and isinstance(value, str) else value for value in values]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def show_members(table: list[dict[str, Any]], out: Output) -> None:
    """Every member of a sweep, the best first."""
    ranked = sorted(table, key=lambda row: (row["state"] not in ("won", "chosen"), -(row["steps"] or 0), row["member"]))
    rows = [
        [row["member"], settings(row["settings"]), _state(row), _number(row["score"]), row["steps"]] for row in ranked
    ]
    out.table(["MEMBER", "SETTINGS", "STATE", "SCORE", "STEPS"], rows)


def settings(of: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value.get('type', value) if isinstance(value, dict) else value}" for name, value in of.items()
    )


def _state(row: dict[str, Any]) -> str:
    return f"stopped in round {row['round']}" if row["state"] == "stopped" and "round" in row else str(row["state"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
