"""Promises of the folder of results: what is finished stays, and belongs to one model, budget and set of rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.compare.cells import Cells
from app.errors import Conflict

ABOUT = {"model": "m", "budget": {"steps": 3, "grid": [0.3, 1.0]}}


def test_cells_opened_again_hold_what_was_put(tmp_path: Path) -> None:
    Cells(tmp_path, ABOUT).put("point", ("a", "full"), dev=0.5)
    again = Cells(tmp_path, ABOUT)
    assert again.get("point", "a", "full") == {"kind": "point", "key": ["a", "full"], "dev": 0.5}
    assert again.get("point", "a", "lora") is None
    assert Cells(tmp_path).all("point") == again.all("point")


def test_line_that_was_cut_short_is_run_again_and_spoils_none(tmp_path: Path) -> None:
    cells = Cells(tmp_path, ABOUT)
    cells.put("point", ("a",), dev=0.5)
    cells.put("point", ("b",), dev=0.6)
    file = tmp_path / "cells.jsonl"
    file.write_bytes(file.read_bytes()[:-7])
    again = Cells(tmp_path, ABOUT)
    assert again.get("point", "a") is not None
    assert again.get("point", "b") is None
    again.put("point", ("b",), dev=0.7)
    found = Cells(tmp_path, ABOUT).get("point", "b")
    assert found is not None
    assert found["dev"] == 0.7


def test_other_budget_is_refused_by_name(tmp_path: Path) -> None:
    Cells(tmp_path, ABOUT)
    with pytest.raises(Conflict, match="another budget"):
        Cells(tmp_path, {**ABOUT, "budget": {"steps": 4}})


def test_other_rows_under_a_known_name_are_refused(tmp_path: Path) -> None:
    cells = Cells(tmp_path, ABOUT)
    cells.check_task("mood", "abc")
    cells.put("task", ("mood",), digest="abc")
    cells.check_task("mood", "abc")
    with pytest.raises(Conflict, match="other rows of mood"):
        cells.check_task("mood", "abd")


def test_folder_without_results_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="no comparison"):
        Cells(tmp_path)


def test_tensors_come_back_until_they_are_dropped(tmp_path: Path) -> None:
    cells = Cells(tmp_path, ABOUT)
    cells.keep(("a", "b"), {"prompt": torch.arange(6.0).view(2, 3).t()})
    found = Cells(tmp_path, ABOUT).tensors(("a", "b"))
    assert found is not None
    assert torch.equal(found["prompt"], torch.arange(6.0).view(2, 3).t())
    cells.drop(("a", "b"))
    assert cells.tensors(("a", "b")) is None
