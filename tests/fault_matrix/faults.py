"""The faults of `faults.toml`, read."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """`tests` are references as `path/test_file.py::test_name`; `gap` says what is not carried out."""

    number: int
    group: str
    what: str
    expected: str
    tests: tuple[str, ...] = ()
    gap: str = ""


def read_faults(file: Path) -> tuple[Fault, ...]:
    """In the order of the file. Raises TypeError for a field that is missing or unknown."""
    entries = tomllib.loads(file.read_text(encoding="utf-8"))["fault"]
    return tuple(Fault(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries)


FAULTS = read_faults(Path(__file__).with_name("faults.toml"))
