"""A whole comparison on the bundled model: what is trained learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli import main
from tests.training_data import mood_rows


@pytest.mark.slow
def test_everything_that_is_trained_beats_the_most_common_answer(tmp_path: Path) -> None:
    data = tmp_path / "mood.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in mood_rows(160)), encoding="utf-8")
    options = ["--steps", "40", "--batch-size", "8", "--grid", "1", "--members", "2", "--ablate", "length"]
    assert main(["compare", "--data", str(data), "--out", str(tmp_path / "out"), *options]) == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    contestants = found["tasks"]["mood"]["contestants"]
    assert set(contestants["spot"]) == {"left_out"}
    chance = contestants["majority"]["test"]["accuracy"]["score"]
    trained = {name: one["test"]["accuracy"]["score"] for name, one in contestants.items() if one.get("trained")}
    assert len(trained) == 10
    assert all(score > chance + 0.2 for score in trained.values()), trained
    assert contestants["full"]["stored_bytes"] > 1000 * contestants["prompt_tuning"]["stored_bytes"]
