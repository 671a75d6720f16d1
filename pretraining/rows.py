"""Rows of the data sets, handed out by purpose, so that no stage can read what it must not.

Training reads *train* splits, and none of a set held out. Evaluation reads *dev* splits. Dev and test rows are read in
full for one purpose alone: to find and drop training text that overlaps them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pretraining.errors import RefusedRows, WorkError

Row = dict[str, str]
MAX_CHARS = 5000  # one row of a slice holds a hundred thousand: a quotation mark never closed


class Purpose(Enum):
    TRAIN = ("train",)
    EVALUATE = ("dev",)
    PROTECT = ("dev", "test")


class RowReader:
    """`folder` holds one folder a data set with `SPLIT.jsonl`; `held_out` names sets that training never sees."""

    def __init__(self, folder: Path, held_out: Collection[str]) -> None:
        self.folder, self.held_out = folder, frozenset(held_out)

    def read(self, name: str, split: str, purpose: Purpose) -> list[Row]:
        """Rows in the file's order; those with a longer field than any model could read are left out.

        Raises RefusedRows if `purpose` may not see them, WorkError if there is no such file.
        """
        if split not in purpose.value:
            raise RefusedRows(f"{name}: {split} rows may not be read to {purpose.name.lower()}")
        if purpose is Purpose.TRAIN and name in self.held_out:
            raise RefusedRows(f"{name} is held out: pretraining never sees it")
        return list(self._rows(name, split))

    def protected(self) -> Iterator[tuple[str, Row]]:
        """(set/split, row) of every dev and test row there is, and of every row of the sets held out: however long, and
        with every text of a field that holds several."""
        for folder in sorted(path for path in self.folder.iterdir() if path.is_dir()):
            for file in sorted(folder.glob("*.jsonl")):
                if file.stem in Purpose.PROTECT.value or folder.name in self.held_out:
                    for values in self._values(folder.name, file.stem):
                        if row := _every_text(values):
                            yield f"{folder.name}/{file.stem}", row

    def _rows(self, name: str, split: str) -> Iterator[Row]:
        for values in self._values(name, split):
            row = {key: value for key, value in values.items() if isinstance(value, str)}
            if row and max(map(len, row.values())) <= MAX_CHARS:
                yield row

    def _values(self, name: str, split: str) -> Iterator[dict[str, Any]]:
        file = self.folder / name / f"{split}.jsonl"
        if not file.is_file():
            raise WorkError(f"no rows at {name}/{split}.jsonl in the data folder")
        with file.open(encoding="utf-8") as lines:  # not str.splitlines: texts hold line separators of their own
            yield from map(json.loads, lines)


def _every_text(values: Mapping[str, Any]) -> Row:
    """A field's texts by its name, those of a list with their place behind it."""
    row: Row = {}
    for key, value in values.items():
        several = isinstance(value, list)
        parts = {f"{key}.{place}": part for place, part in enumerate(value)} if several else {key: value}
        row |= {name: part for name, part in parts.items() if isinstance(part, str)}
    return row
