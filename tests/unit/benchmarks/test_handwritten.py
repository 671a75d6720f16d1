"""The handwritten rows stay as they were frozen; the report counts what was said."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from benchmarks.handwritten import FOLDER, report_of, written
from prompt_store.starters import FOLDER as STARTERS

FROZEN = {
    "sentiment": "4acd1dce9c60329b35ccb568ffeeb06b9d1a21ed6f59ae6b6941e2450ef24ada",
    "nli": "f198c1124045fa91cdc6d904772a86d3c4c77235ddb239379790034f8e46f806",
}


@pytest.mark.parametrize("task", FROZEN)
def test_written_rows_are_as_they_were_frozen(task: str) -> None:
    assert hashlib.sha256((FOLDER / f"{task}.jsonl").read_bytes()).hexdigest() == FROZEN[task]


@pytest.mark.parametrize("task", FROZEN)
def test_written_rows_are_fifty_in_five_styles_and_nearly_balanced(task: str) -> None:
    rows = written(task)
    assert set(Counter(row["style"] for row in rows).values()) == {10}
    assert len(rows) == len({tuple(row.values()) for row in rows}) == 50
    labels = Counter(row["label"] for row in rows)
    assert max(labels.values()) - min(labels.values()) <= 3
    assert (STARTERS / task).exists() or list(STARTERS.glob(f"{task}*"))


def test_report_counts_hits_by_style_and_lists_what_was_wrong() -> None:
    rows = [
        {"text": "fine", "label": "positive", "style": "plain"},
        {"text": "dull", "label": "negative", "style": "turned"},
    ]
    report = report_of({"sentiment": (rows, ["positive", "positive"])}, "some-model")
    assert "| sentiment | 2 | 50.0 %" in report
    assert "plain 1, turned 0" in report
    assert "- dull Said positive, is negative." in report
