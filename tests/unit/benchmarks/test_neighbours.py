"""The page about neighbours: rates, the slowest answers and the ratio of each round."""

from __future__ import annotations

from app.cli.bench.outcomes import Outcome, Run
from benchmarks.neighbours import rate, report


def run(answers: int, *, took_s: float) -> Run:
    return Run([Outcome(("a",), 0.0, 0.0, took_s, codes=(None,)) for _ in range(answers)])


def test_rate_counts_answers_until_the_last_one() -> None:
    assert rate(run(8, took_s=2.0)) == 4.0


def test_page_has_a_line_for_each_number_and_load_with_the_median_of_the_ratios() -> None:
    slow, fast, faster = run(4, took_s=2.0), run(8, took_s=1.0), run(12, took_s=1.0)
    page = report(
        {(0, "labels"): [(fast, fast)] * 3, (1, "labels"): [(slow, fast), (slow, faster), (slow, fast)]}, 3, 4
    )
    assert "| 0 | labels | 8.0 /s | 1000 ms | 8.0 /s | 1000 ms | **1.00 (1.00–1.00)** |" in page
    assert "| 1 | labels | 2.0 /s | 2000 ms | 8.0 /s | 1000 ms | **4.00 (4.00–6.00)** |" in page
