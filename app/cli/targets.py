"""Where an alias points, on the command line: from options to the API's body, from its answers to words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from app.cli.errors import CliError, Exit

FORMS = "VERSION, --split VERSION=WEIGHT (twice or more), --ensemble VERSION,VERSION,…"


def target_body(
    version: int | None, split: Sequence[str], ensemble: str | None, mode: str | None
) -> dict[str, Any] | None:
    """The body of `PUT …/aliases/{alias}`; None when no target is given. Raises CliError."""
    if sum((version is not None, bool(split), ensemble is not None)) > 1:
        raise CliError(f"an alias points to one of {FORMS}", Exit.USAGE)
    if mode is not None and ensemble is None:
        raise CliError("--mode says how the members of an --ensemble answer", Exit.USAGE)
    if split:
        return {"split": [_share(text) for text in split]}
    if ensemble is not None:
        members = [_number(text, "--ensemble", ensemble) for text in ensemble.split(",")]
        return {"ensemble": {"members": members, "mode": mode or "mean"}}
    return None if version is None else {"version": version}


def in_words(target: Any) -> str:
    """`3`, `split 3=0.9 4=0.1`, `mean of 1, 2, 3`: of an alias, of a body, or of an entry of a task's `aliases`."""
    if not isinstance(target, dict):
        return str(target)
    if target.get("split"):
        return "split " + " ".join(f"{share['version']}={share['weight']:.6g}" for share in target["split"])
    if target.get("ensemble"):
        members = ", ".join(str(number) for number in target["ensemble"]["members"])
        return f"{target['ensemble']['mode']} of {members}"
    return str(target["version"])


def _share(text: str) -> dict[str, Any]:
    number, _, weight = text.partition("=")
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CliError(f"--split takes VERSION=WEIGHT, such as 3=0.9, not {text!r}", Exit.USAGE)
    return {"version": _number(number, "--split", text), "weight": value}


def _number(text: str, option: str, given: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and int(digits) >= 1):
        raise CliError(f"{option}: {text.strip()!r} in {given!r} is not a version's number", Exit.USAGE)
    return int(digits)
