from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from app.compare.cells import Cells
from benchmarks.methods import BUDGET, CUT, LABELLED, joined, parts, write
from benchmarks.methods_goals import UNSEEN, goals
from benchmarks.methods_longer import STEPS, longer


def cells_of(folder: Path, name: str, budget: dict[str, Any]) -> None:
    made = Cells(folder, {"model": "tiny", "fingerprint": "f" * 64, "budget": budget})
    rows = {"train": 5, "dev": 4, "test": 8}
    told = {"template": "<prompt:20>{text}", "words": None, "metric": "accuracy", "dropped": 0, "notes": []}
    made.put("task", (name,), digest=name, rows=rows, references=[["a"]] * 8, **told)
    costs = {
        "dev": 0.7,
        "dev_loss": 0.5,
        "lower_is_better": False,
        "seconds": 2.0,
        "trained": 60,
        "stored_bytes": 99,
        "times": 3.0,
    }
    made.put("result", (name, "full"), given=["a"] * 6 + ["b"] * 2, **costs)


def test_parts_are_the_labelled_sets_together_the_unseen_ones_and_the_text_alone(tmp_path: Path) -> None:
    labels, unseen, text = parts(tmp_path, tmp_path / "w", "bundled")
    assert [files.name for files in unseen.wanted.files] == list(CUT)
    assert unseen.wanted.methods is None
    assert [files.name for files in labels.wanted.files] == list(LABELLED)
    assert labels.wanted.methods is None
    assert labels.wanted.budget == unseen.wanted.budget == text.wanted.budget
    assert all(
        files.template and "<prompt:20>" in files.template
        for part in (labels, unseen, text)
        for files in part.wanted.files
    )
    (alone,) = parts(tmp_path, tmp_path / "w", "bundled", ["trec"])
    assert alone.wanted.out == tmp_path / "w" / "trec"


def test_page_joins_what_is_there_and_leaves_no_old_picture(tmp_path: Path) -> None:
    cells_of(tmp_path / "labels", "sst2", BUDGET.describe())
    cells_of(tmp_path / "e2e", "e2e", BUDGET.describe())
    out = tmp_path / "results"
    (out / "methods").mkdir(parents=True)
    (out / "methods" / "old.svg").write_text("<svg/>")
    write([tmp_path / "labels", tmp_path / "e2e", tmp_path / "not-begun"], out)
    page = (out / "methods.md").read_text(encoding="utf-8")
    assert page.index("## sst2") < page.index("## e2e")
    assert "| full fine-tuning | 0.700 | 0.750 (" in page
    assert "- qqp:" not in page
    assert "- sst2: the rate chosen lies at the grid's edge for full fine-tuning" in page
    pictures = {file.name for file in (out / "methods").iterdir()}
    assert pictures == {f"{name}{kind}.svg" for name in ("sst2", "e2e") for kind in ("", "-bytes")}
    for file in pictures:
        ElementTree.parse(out / "methods" / file)
        assert f"(methods/{file})" in page
    assert set(json.loads((out / "methods.json").read_text())["tasks"]) == {"sst2", "e2e"}


def test_mean_of_joined_parts_names_the_sets_it_is_of(tmp_path: Path) -> None:
    for name in ("sst2", "trec"):
        cells_of(tmp_path / "labels", name, BUDGET.describe())
    cells_of(tmp_path / "e2e", "e2e", BUDGET.describe())
    write([tmp_path / "labels", tmp_path / "e2e"], tmp_path)
    assert "\nMean over sst2, trec.\n" in (tmp_path / "methods.md").read_text(encoding="utf-8")


def test_parts_of_other_budgets_are_not_joined() -> None:
    with pytest.raises(SystemExit, match="different models or budgets"):
        joined([{"about": {"steps": 1}}, {"about": {"steps": 2}}])


def made(scores: dict[str, tuple[float, float]], gain: float) -> dict[str, Any]:
    """A task of a document: (dev, test) of contestants, and the ensemble's gain."""
    contestants = {name: {"dev": dev, "test": {"accuracy": {"score": test}}} for name, (dev, test) in scores.items()}
    pair = {"ensemble_vs_members": {"gain": gain, "interval": [gain - 0.01, gain + 0.01]}}
    return {"metric": "accuracy", "contestants": contestants, "pairs": pair}


def test_goals_are_judged_on_what_dev_rows_chose() -> None:
    usual = made({"full": (0.8, 0.8), "prompt_tuning": (0.9, 0.76), "prefix_tuning": (0.1, 0.99)}, 0.02)
    other = made({"full": (0.8, 0.8), "prompt_tuning": (0.5, 0.4), "prefix_tuning": (0.6, 0.8)}, -0.02)
    found = {"tasks": dict.fromkeys((*LABELLED, *CUT), usual) | {"sst2": other, "e2e": {}}}
    whole, each, unseen, unseen_each, ensemble = goals(found, LABELLED)
    mean = (5 * 0.76 + 0.4) / (6 * 0.8)
    assert f"prompt tuning ÷ full fine-tuning | {mean:.3f} | ≥ 0.97 | **not met** |" in whole
    assert f"each set's best by dev rows ÷ full fine-tuning | {(5 * 0.76 + 0.8) / 4.8:.3f} |" in each
    assert "| 0.950 | ≥ 0.95 | met |" in unseen
    assert "| 0.950 |" in unseen_each
    assert "better on 5 of 6 sets" in ensemble
    assert "above 0 on 5" in ensemble
    assert ensemble.endswith("| met |")


def test_goals_of_what_is_not_finished_are_not_judged() -> None:
    assert list(goals({"tasks": {"sst2": made({}, 0.0)}}, LABELLED)) == []
    alone = made({"full": (0.8, 0.8)}, 0.0) | {"pairs": {}}
    assert list(goals({"tasks": dict.fromkeys(LABELLED, alone)}, LABELLED)) == []


def test_longer_run_gives_prompts_and_weights_the_same_steps_on_every_unseen_set(tmp_path: Path) -> None:
    wanted = longer(tmp_path, tmp_path / "w", "bundled", STEPS)
    assert [files.name for files in wanted.files] == list(UNSEEN)
    assert wanted.budget == replace(BUDGET, steps=4 * BUDGET.steps)
    assert {"prompt_tuning", "prefix_tuning", "full"} < set(wanted.methods or ())
    assert wanted.out != longer(tmp_path, tmp_path / "w", "bundled", BUDGET.steps).out


def test_page_of_another_name_has_its_own_document_pictures_and_budget(tmp_path: Path) -> None:
    cells_of(tmp_path / "cells", "trec", replace(BUDGET, steps=600).describe())
    write([tmp_path / "cells"], tmp_path, name="methods-longer", title="Learned for longer")
    page = (tmp_path / "methods-longer.md").read_text(encoding="utf-8")
    assert page.startswith("# Learned for longer\n")
    assert "- 600 steps of 16 rows" in page
    assert "(methods-longer/trec.svg)" in page
    assert (tmp_path / "methods-longer" / "trec.svg").is_file()
    assert set(json.loads((tmp_path / "methods-longer.json").read_text())["tasks"]) == {"trec"}
    assert not (tmp_path / "methods.md").exists()
