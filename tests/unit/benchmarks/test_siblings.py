from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import siblings
from benchmarks.siblings import SIBLINGS, Found, main, page, sources_in
from tests.families import save_backbone
from tests.training_data import mood_rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    names = {"bad": "negative", "good": "positive"}
    for split, count in (("train", 32), ("dev", 16), ("test", 24)):
        rows = [{"text": f"{split} {row['text']}", "label": names[row["label"]]} for row in mood_rows(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Tiny models where the siblings would be."""
    work = tmp_path / "work"
    for folder, name in (("t5/export-spans", "t5"), ("t5/export", "t5_gated"), ("bert/export", "bert")):
        save_backbone(name, work / folder)
    (work / "t5" / "export" / "provenance.json").write_text('{"tokens_trained": 2500000}')
    return work


@pytest.fixture(autouse=True)
def threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_siblings_when_all_are_there_are_tuned_and_tabled_and_nothing_is_done_twice(
    data: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    causal, out = save_backbone("llama", tmp_path / "llama"), tmp_path / "siblings.md"
    given = ["--data", str(data), "--work", str(work), "--causal", str(causal), "--write", str(out), "--steps", "2"]
    monkeypatch.setattr(siblings, "conditions", lambda: "at noon")  # it tells the minute
    main(given)
    rows = [line.split(" | ") for line in out.read_text().splitlines() if line.startswith("|")][2:]
    assert [row[0].removeprefix("| ") for row in rows] == [of.title for of in SIBLINGS]
    assert [row[1] for row in rows] == ["`causal`", "`seq2seq`", "`seq2seq`", "`masked`"]
    assert [row[3] for row in rows] == ["not recorded", "not recorded", "2.5 M", "not recorded"]
    assert all("%" in row[4] and "%" in row[6] and "–" in row[6] for row in rows)
    assert "24 test rows" in out.read_text()
    first = out.read_text()
    monkeypatch.setattr("app.compare.comparison.fit_prompt", None)
    main(given)
    assert out.read_text() == first


def test_siblings_when_a_model_is_missing_names_it_before_anything_runs(work: Path, tmp_path: Path) -> None:
    (work / "bert" / "export" / "config.json").unlink()
    with pytest.raises(SystemExit, match=r"bert/export; docs/pretraining\.md"):
        sources_in(work, "bundled")
    assert not (work / "prompts").exists()


def test_page_when_the_adaptation_helps_says_by_how_much() -> None:
    found = [
        Found(of.title, "seq2seq", 6_000_000, 1_000_000, 200, 150 + 10 * at, 100, 0.8, 1.0, 60.0)
        for at, of in enumerate(SIBLINGS)
    ]
    text = page(found, ["positive"] * 110 + ["negative"] * 90, siblings.BUDGET)
    assert "changes the encoder-decoder's accuracy by +5.0 points" in text
    assert "| 6.0 M | 1.0 M | 50.0 % (43.1–56.9) | 80.0 % | 75.0 % (68.6–80.5) | 1 | 60 |" in text
    assert "200 test rows" in text
    assert "has 55.0 %" in text
