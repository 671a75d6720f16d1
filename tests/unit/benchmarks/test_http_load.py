from __future__ import annotations

import json
from pathlib import Path

from benchmarks.http_load import Side, as_json, render

ENGINE = Side([100.0, 120.0, 110.0], [], [], [])
SERVICE = Side([80.0, 84.0, 99.0], [31.0, 32.0, 30.0], [0.02, 0.03, 0.02], [0.3, 0.2, 0.25])


def test_ratio_when_rounds_drift_is_of_neighbouring_rounds() -> None:
    one = as_json(ENGINE, SERVICE, conditions="here, today", requests=64, streamed=False)
    assert (one["engine_per_s"], one["http_per_s"], one["ratio"]) == (110.0, 84.0, 0.8)
    assert one["ranges"]["ratio"] == [0.7, 0.9]
    assert one["raw"]["service"]["rates"] == SERVICE.rates
    assert json.loads(json.dumps(one)) == one


def test_page_when_models_were_run_apart_keeps_each_ones_conditions() -> None:
    tiny = as_json(ENGINE, SERVICE, conditions="here, today", requests=64, streamed=False)
    large = as_json(ENGINE, SERVICE, conditions="there, yesterday", requests=32, streamed=True)
    page = render({"0.5b": large, "tiny": tiny})
    assert page.index("| tiny (float32) | 110.00 (100.00–120.00) |") < page.index("| 0.5b (bfloat16) |")
    assert "- tiny: here, today; 3 rounds of 64 requests, not streamed.\n" in page
    assert "- 0.5b: there, yesterday; 3 rounds of 32 requests, streamed.\n" in page


def test_page_in_the_repository_when_rendered_anew_is_the_same() -> None:
    page = Path(__file__).parents[3] / "docs" / "results" / "http.md"
    assert render(json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))) == page.read_text(encoding="utf-8")
