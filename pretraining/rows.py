"""Rows of the data sets, handed out by purpose, so that no stage can read what it must not.

Training reads *train* splits, and none of a set held out. Evaluation reads *dev* splits. Dev and test rows are read in
full for one purpose alone: to find and drop training text that overlaps them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from enum import Enum
from pathlib import Path

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
        """(set/split, row) of every dev and test row there is, and of every row of the sets held out."""
        for folder in sorted(path for path in self.folder.iterdir() if path.is_dir()):
            for file in sorted(folder.glob("*.jsonl")):
                if file.stem in Purpose.PROTECT.value or folder.name in self.held_out:
                    for row in self._rows(folder.name, file.stem):
                        yield f"{folder.name}/{file.stem}", row

    def _rows(self, name: str, split: str) -> Iterator[Row]:
        file = self.folder / name / f"{split}.jsonl"
        if not file.is_file():
            raise WorkError(f"no rows at {name}/{split}.jsonl in the data folder")
        with file.open(encoding="utf-8") as lines:  # not str.splitlines: texts hold line separators of their own
            for line in lines:
                row = {key: value for key, value in json.loads(line).items() if isinstance(value, str)}
                if row and max(map(len, row.values())) <= MAX_CHARS:
                    yield row
