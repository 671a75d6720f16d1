"""Copies of a set in which labels are exchanged are set right, and others are left alone."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.starters.mended import MENDED, mended
from benchmarks.starters.rows import split_of_sets, write_mended

REVIEWS = ["a film of rare charm .", "the performances are fine .", "simply dreadful ."]
PLOTS = ["two brothers come home .", "she finds a letter .", "the director of a bank is robbed ."]


def rows(of_reviews: str, of_plots: str) -> list[dict[str, str]]:
    return [{"text": text, "label": of_reviews} for text in REVIEWS] + [
        {"text": text, "label": of_plots} for text in PLOTS
    ]


def write(folder: Path, *, exchanged: bool) -> None:
    (folder / "subj").mkdir(parents=True)
    found = rows("objective", "subjective") if exchanged else rows("subjective", "objective")
    for split in ("train", "dev", "test"):
        text = "".join(json.dumps({**row, "text": f"{split} {row['text']}"}) + "\n" for row in found)
        (folder / "subj" / f"{split}.jsonl").write_text(text)


def test_exchanged_labels_are_set_right_and_right_ones_left() -> None:
    right = rows("subjective", "objective")
    assert mended("subj", rows("objective", "subjective")) == right
    assert mended("subj", right) == right


def test_other_sets_are_left_alone_whatever_their_labels() -> None:
    other = rows("objective", "subjective")
    assert mended("opinions", other) == other
    assert MENDED == ("subj",)


def test_every_split_of_a_starter_and_of_the_comparison_has_the_right_labels(tmp_path: Path) -> None:
    write(tmp_path / "exchanged", exchanged=True)
    write(tmp_path / "right", exchanged=False)
    split = split_of_sets(tmp_path / "exchanged", ("subj",), "subj")
    for part in (split.train, split.dev, split.test):
        assert {row["label"] for row in part if "charm" in row["text"]} == {"subjective"}
    for copy in ("exchanged", "right"):
        write_mended(tmp_path / copy, tmp_path / "written" / copy)
        for name in ("train", "dev", "test"):
            assert (tmp_path / "written" / copy / "subj" / f"{name}.jsonl").read_text() == (
                tmp_path / "right" / "subj" / f"{name}.jsonl"
            ).read_text()


def test_set_that_is_not_there_is_not_written(tmp_path: Path) -> None:
    write_mended(tmp_path, tmp_path / "written")
    assert not list((tmp_path / "written").rglob("*.jsonl"))
