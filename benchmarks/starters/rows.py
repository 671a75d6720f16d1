"""Rows of a starter task: read from JSON lines, and split so that no input stands in two splits."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.starters.mended import MENDED, mended

Row = dict[str, Any]
"""Fields with `label`, with `output`, or with `references`, a list of good answers."""

DEV_ROWS, TEST_ROWS, SEED = 800, 10_000, 20
MAX_CHARS = 5000  # one field of the MultiNLI slice holds a hundred thousand: a quotation mark never closed
SPLITS = ("train", "dev", "test")
ANSWERS = ("label", "output", "references")


@dataclass(frozen=True)
class Split:
    """`details`: what the card shall say of how the rows came about."""

    train: list[Row]
    dev: list[Row]
    test: list[Row]
    details: dict[str, Any] = field(default_factory=dict)


def read_rows(file: Path) -> list[Row]:
    with file.open(encoding="utf-8") as lines:  # not str.splitlines: texts hold line separators of their own
        return [json.loads(line) for line in lines if line.strip()]


def read_set(data: Path, name: str, split: str) -> list[Row]:
    """A split of a set, with labels that say what they mean."""
    return mended(name, read_rows(data / name / f"{split}.jsonl"))


def write_mended(data: Path, folder: Path, names: Iterable[str] = MENDED) -> None:
    """Write the sets whose labels are looked at below `folder`, for who reads files; the same bytes each time."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            if (data / name / f"{split}.jsonl").is_file():
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in read_set(data, name, split))
                (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")


def split_of_sets(data: Path, sets: tuple[str, ...], test: str) -> Split:
    """The train rows of `sets`, shuffled; dev and test rows of `test`, the kind it is judged on. Where a set has no dev
    rows they are cut from its train rows. Training rows whose input is a dev or test row's are left out."""
    rows = [row for name in sets for row in read_set(data, name, "train")]
    rows = [row for row in rows if max(map(len, inputs_of(row).values())) <= MAX_CHARS]
    random.Random(SEED).shuffle(rows)
    asked = read_set(data, test, "test")[:TEST_ROWS]
    dev_file = data / test / "dev.jsonl"
    if dev_file.is_file():
        dev = [to_learn(row) for row in read_set(data, test, "dev")[:DEV_ROWS]]
    else:
        dev, rows = rows[:DEV_ROWS], rows[DEV_ROWS:]
    held = {_key(row) for row in (*dev, *asked)}
    train = [to_learn(row) for row in rows if _key(row) not in held]
    return Split(train, dev, asked, {"left_out": len(rows) - len(train)} if len(train) < len(rows) else {})


def to_learn(row: Row) -> Row:
    """A row as training takes it: of several references the first is the answer."""
    if "references" not in row:
        return row
    return {**inputs_of(row), "output": row["references"][0]}


def inputs_of(row: Row) -> dict[str, str]:
    return {name: value for name, value in row.items() if name not in ANSWERS}


def references_of(row: Row) -> list[str]:
    """The good answers of a row of free text."""
    return list(row["references"]) if "references" in row else [row["output"]]


def _key(row: Row) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(inputs_of(row).items()))
