"""Promises of what is printed."""

import io

import pytest
from rich.console import Console

from app.cli.output import Output, bar, clean, spark
from app.cli.watch import _show_bar


def test_table_when_piped_has_aligned_columns_without_padding(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(["NAME", "N"], [["a", 1], ["long name", 22], [None, ""]], right=["N"])
    assert capsys.readouterr().out.splitlines() == [
        "NAME         N",
        "a            1",
        "long name   22",
        "–            –",
    ]


def test_clean_when_text_would_steer_the_terminal_shows_it() -> None:
    assert clean("a\x1b[31mb\x07\u202e\n") == "a\\x1b[31mb\\x07\\u202e\n"


@pytest.mark.parametrize(("share", "cells"), [(0.0, ""), (1.0, "████"), (0.5, "██"), (2.0, "████"), (0.03125, "▏")])
def test_bar_for_a_share_is_as_long(share: float, cells: str) -> None:
    assert bar(share, 4) == cells


def test_spark_scales_between_least_and_greatest_and_leaves_out_nan() -> None:
    assert spark([1.0, float("nan"), 2.0, 3.0]) == "▁▅█"
    assert spark([]) == ""
    assert spark([float(n) for n in range(100)], width=4) == "▁▃▆█"


def test_show_bar_on_a_terminal_draws_step_loss_score_and_eta() -> None:
    out = Output()
    out.console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    events = [
        {"type": "status", "message": "running", "data": {}},
        {"type": "progress", "message": "", "data": {"step": 5, "total": 9, "loss": 1.5, "score": 0.25, "eta_s": 61}},
        {"type": "warning", "message": "few rows", "data": {}},
        {"type": "status", "message": "succeeded", "data": {}},
    ]
    _show_bar(iter(events), {"task": "tickets", "status": "queued"}, out)
    drawn = out.console.file.getvalue()
    for part in ("tickets  succeeded", "9/9", "loss 1.500", "score 0.250", "ETA 1:01", "few rows"):
        assert part in drawn
