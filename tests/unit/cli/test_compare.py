"""Promises of `chorus compare`: what is wrong on the line is said before any model is loaded, results are read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli.errors import Exit
from tests.training_data import mood_rows
from tests.unit.cli.conftest import Ran


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "mood rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in mood_rows(60)), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--data or --manifest"),
        (("--data", "{rows}", "--manifest", "{rows}"), "--data or --manifest"),
        (("--data", "{rows}x"), "there is no file"),
        (("--manifest", "{rows}", "--template", "{text}"), "names its own"),
        (("--data", "{rows}", "--grid", "1,a"), "--grid"),
        (("--data", "{rows}", "--grid", "0"), "--grid"),
        (("--data", "{rows}", "--verbalizer", "yes"), "--verbalizer is not JSON"),
        (("--data", "{rows}", "--verbalizer", "[1]"), "--verbalizer is an object"),
    ],
)
def test_line_that_cannot_be_meant_is_refused(
    chorus: Callable[..., Ran], rows: Path, options: tuple[str, ...], said: str
) -> None:
    ran = chorus("compare", *(one.replace("{rows}", str(rows)) for one in options))
    assert ran.code == Exit.USAGE
    assert said in ran.err


@pytest.mark.parametrize(("option", "said"), [("--methods", "no method 'nil'"), ("--ablate", "no ablation 'nil'")])
def test_unknown_names_are_refused_with_those_there_are(
    chorus: Callable[..., Ran], rows: Path, tmp_path: Path, option: str, said: str
) -> None:
    ran = chorus("compare", "--data", str(rows), option, "nil", "--out", str(tmp_path / "out"))
    assert ran.code == Exit.USAGE
    assert said in ran.err


def test_command_runs_on_the_bundled_model_and_prints_the_document(
    chorus: Callable[..., Ran], rows: Path, tmp_path: Path
) -> None:
    line = ("compare", "--data", str(rows), "--methods", "majority,zero_shot", "--out", str(tmp_path / "out"))
    found = chorus(*line, "--json").json
    assert set(found["tasks"]) == {"mood-rows"}
    assert found["tasks"]["mood-rows"]["contestants"]["majority"]["test"]["accuracy"]["score"] == 0.5
    assert "| zero-shot |" in chorus(*line).out
