"""Finished work on disk: one JSON line for each run and each result, written at once, so that an end loses one run.

DIR/cells.jsonl         the first line says what all others hold for; then runs, results, serving, ablations
DIR/tensors/*.safetensors   what a result learned
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from app.errors import Conflict

Key = tuple[str, ...]


class Cells:
    """Records by (kind, key). `about` is the model and the budget."""

    def __init__(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Open a folder, with what lies there. `about` None only reads.

        Raises Conflict where it holds results of another model or budget, or where there is nothing to read."""
        self.folder = folder
        self._file = folder / "cells.jsonl"
        self._known: dict[tuple[str, Key], dict[str, Any]] = {}
        lines = list(_lines(self._file))
        if about is None and not lines:
            raise Conflict(f"{folder} holds no comparison", param="out")
        wanted = json.loads(json.dumps({"kind": "about", "key": [], **(about or lines[0])}))
        if lines and lines[0] != wanted:
            other = sorted(name for name in wanted if wanted[name] != lines[0].get(name))
            raise Conflict(
                f"{folder} holds a comparison with another {', '.join(other)}: choose another folder", param="out"
            )
        self.about: dict[str, Any] = wanted
        self._known = {(str(one["kind"]), tuple(one["key"])): one for one in lines[1:]}
        if not lines:
            (folder / "tensors").mkdir(parents=True, exist_ok=True)
            self._append(wanted)

    def get(self, kind: str, *key: str) -> dict[str, Any] | None:
        return self._known.get((kind, key))

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [one for (of, _), one in self._known.items() if of == kind]

    def put(self, kind: str, key: Key, **what: Any) -> dict[str, Any]:
        """Write a record; it is on the disk when this returns."""
        record = {"kind": kind, "key": list(key), **what}
        self._append(record)
        self._known[kind, key] = record
        return record

    def keep(self, key: Key, tensors: Mapping[str, Tensor]) -> None:
        """Store what a run learned. Whole or not at all."""
        if tensors:
            path = self._path(key)
            save_file({name: part.contiguous() for name, part in tensors.items()}, path.with_suffix(".new"))
            os.replace(path.with_suffix(".new"), path)

    def tensors(self, key: Key) -> dict[str, Tensor] | None:
        """What was kept; None where it is gone."""
        path = self._path(key)
        found: dict[str, Tensor] | None = load_file(path) if path.is_file() else None
        return found

    def drop(self, key: Key) -> None:
        self._path(key).unlink(missing_ok=True)

    def check_task(self, name: str, digest: str) -> None:
        """Raise Conflict if results of other rows under this name lie here."""
        known = self.get("task", name)
        if known is not None and known["digest"] != digest:
            raise Conflict(f"{self.folder} holds results of other rows of {name}: choose another folder", param="out")

    def _path(self, key: Key) -> Path:
        return self.folder / "tensors" / f"{'--'.join(key)}.safetensors"

    def _append(self, record: Mapping[str, Any]) -> None:
        whole = not self._file.exists() or self._file.read_bytes()[-1:] in (b"", b"\n")
        with self._file.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Whole records; a line that a kill cut short is none."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue
