"""Promises of page and pictures: made from recorded cells alone, SVG that a reader of XML accepts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from app.compare.budget import Budget
from app.compare.cells import Cells
from app.compare.page import page
from app.compare.pictures import pictures
from app.compare.report import best_prompt, document
from app.compare.run import conditions
from app.compare.svg import Axis, Point, lines, ranked, scatter, spread

SVG = "{http://www.w3.org/2000/svg}"


def record(dev: float, right: int, **more: Any) -> dict[str, Any]:
    given = ["a"] * right + ["b"] * (10 - right)
    base = {
        "lower_is_better": False,
        "dev_loss": 0.5,
        "seconds": 2.0,
        "cpu_seconds": 1.5,
        "trained": 60,
        "stored_bytes": 250,
    }
    return {"given": given, "dev": dev, "best_step": 3, "times": 1.0, **base, **more}


@pytest.fixture
def cells(tmp_path: Path) -> Cells:
    made = Cells(tmp_path, {"model": "tiny", "fingerprint": "f" * 64, "budget": Budget().describe()})
    for name in ("one", "two"):
        told = {"template": "<prompt:20>{text} <&>", "words": None, "metric": "accuracy", "dropped": 0, "notes": []}
        rows = {"train": 5, "dev": 4, "test": 10}
        made.put("task", (name,), digest=name, rows=rows, references=[["a"]] * 10, **told)
        made.put("result", (name, "prompt_tuning"), **record(0.6, 7))
        made.put("result", (name, "residual"), **record(0.8, 6))
        made.put("result", (name, "full"), **record(0.9, 9, requests_s=100.0 if name == "one" else 300.0))
        made.put("result", (name, "ensemble"), **record(0.7, 8, members=[["a"] * 10, ["b"] * 10]))
        made.put("result", (name, "lora"), left_out="no PEFT")
    made.put("served", ("prompt_tuning", "one+two"), requests_s=400.0, tasks=["one", "two"])
    made.put("ablation", ("one", "length", "5", "0"), **record(0.5, 5))
    made.put("ablation", ("one", "length", "20", "0"), **record(0.5, 6))
    made.put("ablation", ("one", "length", "20", "1"), **record(0.5, 8))
    return made


def test_document_scores_what_was_given(cells: Cells) -> None:
    found = document(cells)
    one = found["tasks"]["one"]["contestants"]
    assert {name: of["test"]["accuracy"]["score"] for name, of in one.items() if "test" in of} == {
        "prompt_tuning": 0.7, "residual": 0.6, "full": 0.9, "ensemble": 0.8,
    }  # fmt: skip
    assert found["over_tasks"]["full"]["score"] == pytest.approx(0.9)
    assert found["own_served"]["full"]["requests_s"] == pytest.approx(150.0)  # two models, as many requests of each
    pairs = found["tasks"]["one"]["pairs"]
    assert pairs["best_prompt_vs_full"]["prompt"] == "residual"  # by dev rows, although another did better on test
    assert pairs["best_prompt_vs_full"]["gain"] == pytest.approx(-0.3)
    assert pairs["ensemble_vs_members"]["mean"] == pytest.approx(0.5)
    assert pairs["ensemble_vs_members"]["gain"] == pytest.approx(0.3)


def test_best_prompt_of_losses_is_the_lowest() -> None:
    results = {
        "prompt_tuning": record(2.0, 5, lower_is_better=True),
        "prefix_tuning": record(1.5, 5, lower_is_better=True),
        "full": record(1.0, 5, lower_is_better=True),
    }
    assert best_prompt(results) == "prefix_tuning"


def test_page_has_a_row_for_each_and_says_who_is_left_out(cells: Cells) -> None:
    found = document(cells)
    found["about"]["conditions"] = conditions()
    text = page(found, pictures={"a picture": "x/y.svg"})
    assert "200 steps of 16 rows" in text
    assert "(0.3, 1, 3 times its own)" in text
    assert "| full fine-tuning | 0.900 | 0.900 (" in text
    assert "Left out: LoRA, rank 8, all linear layers: no PEFT." in text
    assert "| prompt tuning | 0.700 (" in text
    assert "| 400 |" in text
    assert "| 1 | 60 | 250 | 2.0 | 1.5 | 100 |" in text
    assert "| 20 | 0.700 (0.600, 0.800) |" in text
    assert "![a picture](x/y.svg)" in text


def test_pictures_are_well_formed_and_show_every_name(cells: Cells) -> None:
    drawn = pictures(document(cells))
    assert set(drawn) == {"all.svg", "by-length.svg", *(f"{n}{k}.svg" for n in ("one", "two") for k in ("", "-bytes"))}
    for _, text in drawn.values():
        assert ElementTree.fromstring(text).tag == f"{SVG}svg"
    words = [of.text for of in ElementTree.fromstring(drawn["one.svg"][1]).iter(f"{SVG}text")]
    assert "full fine-tuning" in words
    assert words.index("full fine-tuning") < words.index("ensemble of prompts") < words.index("residual prompt tuning")


def test_pictures_escape_names_and_bear_equal_values() -> None:
    point = Point(0, 0.5, 0.5, 0.5)
    for text in (
        ranked("<a & b>", [("x < y", point)]),
        lines("<a>", ["1"], [("s & t", [point])]),
        scatter("a", "b", [("x", point)]),
    ):
        assert ElementTree.fromstring(text).tag == f"{SVG}svg"


def test_axis_marks_round_values_within_itself() -> None:
    axis = Axis(0.31, 0.88, 100, 200)
    assert axis.ticks() == [0.4, 0.5, 0.6, 0.7, 0.8]
    assert (axis.at(0.31), axis.at(0.88)) == (100, 200)


def test_names_beside_dots_keep_apart_and_within_the_picture() -> None:
    assert spread([10, 12, 100, 200], 360, 17) == [10, 27, 100, 200]
    assert spread([300, 350, 355, 358], 360, 17) == [300, 326, 343, 360]
    points = [(f"method {n}", Point(n, 0.5, 0.4, 0.6)) for n in range(9)]
    found = ElementTree.fromstring(scatter("a", "bytes", points)).iter(f"{SVG}text")
    places = {of.text: float(of.attrib["y"]) for of in found}
    heights = sorted(places[name] for name, _ in points)
    assert all(above + 17 <= below + 1e-6 for above, below in pairwise(heights))
    assert {"1", "10 k", "1 M", "100 M"} <= places.keys()
