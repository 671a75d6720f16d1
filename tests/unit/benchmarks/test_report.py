from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.engine.report import (
    RATE_COLUMNS,
    Section,
    Verdict,
    best_peer,
    rate_rows,
    ratio,
    render,
    render_kept,
    save,
)
from benchmarks.engine.stage import ROUND_S, Entrant, Result, compare, fewer, interleave
from benchmarks.engine.throughput import CHORUS, GROUPED, STATIC, Target, verdicts
from benchmarks.engine.workload import Workload

VLLM = Entrant("vLLM, blocks of 32", "vllm-32")
ENTRANTS = [STATIC, GROUPED, VLLM, CHORUS]


def results(*, vllm: list[float], ours: list[float]) -> dict[str, Result]:
    return {
        STATIC.label: Result(32, [10.0, 10.0, 10.0]),
        GROUPED.label: Result(32, note="it broke"),
        VLLM.label: Result(64, vllm, note="" if vllm else "vLLM is not installed"),
        CHORUS.label: Result(64, ours, checked=32, differing=2, close=1),
    }


def test_answers_when_compared_count_rows_and_close_calls() -> None:
    wanted = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]]
    margins = [[1.0, 1.0, 1.0], [1.0, 1e-6, 1.0], [1.0, 1.0, 1e-6], [1.0, 1.0, 1.0]]
    answers = [[1, 2, 3], [4, 0, 6], [0, 8, 0], [1, 1]]
    assert compare(answers, wanted, margins, tolerance=1e-4) == (3, 1)
    assert compare([0, 1, 1], [0, 1, 2], [[1.0]] * 3, tolerance=2.0) == (1, 1)


def test_peer_when_its_round_takes_too_long_is_asked_less_but_a_full_batch() -> None:
    assert fewer(128, 2 * 128 / ROUND_S, 64) == 128
    assert fewer(128, 80.5 / ROUND_S, 64) == 80
    assert fewer(128, 1 / ROUND_S, 64) == 64
    assert fewer(8, 1 / ROUND_S, 64) == 8


def test_requests_when_rounds_are_slow_are_those_of_the_last_round() -> None:
    asked: list[int] = []

    class Slow:
        rounds = 3

        def prepare(self, *_: object) -> None: ...

        def ask(self, *_: object, count: int, **__: object) -> dict[str, float]:
            asked.append(count)
            return {"seconds": ROUND_S * (4 if len(asked) == 1 else 2)}

    found = interleave(Slow(), {"": Workload()}, [STATIC], requests=512)  # type: ignore[arg-type]
    assert asked == [256, 64, 32]
    assert found[STATIC.label].requests == asked[-1]
    assert found[STATIC.label].values == [count / ROUND_S / (4 if i == 0 else 2) for i, count in enumerate(asked)]


def test_ratio_when_rounds_drift_is_taken_round_by_round() -> None:
    assert ratio(Result(1, [10.0, 100.0, 40.0]), Result(1, [5.0, 50.0, 10.0])) == 2.0


def test_best_peer_when_chosen_is_never_ours_nor_an_unmeasured_one() -> None:
    assert best_peer(ENTRANTS, results(vllm=[20.0, 20.0, 21.0], ours=[99.0] * 3)) == VLLM.label
    assert best_peer(ENTRANTS, results(vllm=[], ours=[99.0] * 3)) == STATIC.label
    assert best_peer([CHORUS], results(vllm=[], ours=[1.0])) is None


def test_table_when_a_peer_failed_says_why() -> None:
    rows = rate_rows(ENTRANTS, results(vllm=[20.0, 20.0, 20.0], ours=[30.0, 30.0, 30.0]))
    assert rows[1][1] == "not measured: it broke"
    assert rows[2][3] == "1.50×"
    assert rows[3][0] == "**Chorus**"
    assert rows[3][6] == "2 of 32 (1 at a close call)"
    assert {len(row) for row in rows} == {len(RATE_COLUMNS)}


def test_table_when_a_peer_makes_batches_says_their_rows() -> None:
    found = results(vllm=[20.0, 20.0, 20.0], ours=[30.0, 30.0, 30.0])
    found[STATIC.label].rows_a_batch = 32.0
    rows = rate_rows(ENTRANTS, found)
    assert [row[5] for row in rows] == ["32", "", "≤ 64", "≤ 64"]


def test_page_when_sections_are_of_different_hours_shows_when_each_goal_was_measured() -> None:
    verdict = Verdict("against it", "2×", "≥ 2×", True)
    sections = [
        Section(
            "tiny/a", "one", ["", "rate"], [["PEFT, grouped", "1"]], [verdict], conditions="2026-01-02 05:24 UTC; x"
        ),
        Section("tiny/b", "two", ["", "rate"], [["Chorus", "1"]], [verdict], conditions="2026-01-02 16:30 UTC; x"),
    ]
    text = render(sections)
    assert "| one: against it | 2× | ≥ 2× | met | 2026-01-02 05:24 UTC |" in text
    assert "| two: against it | 2× | ≥ 2× | met | 2026-01-02 16:30 UTC |" in text
    assert text.count("- PEFT: see [how the peers are run](#how-the-peers-are-run)") == 1
    assert "## How the peers are run" in text


def test_page_in_the_repository_when_rendered_anew_is_the_same(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "results" / "engine.md"
    copy = tmp_path / page.name
    copy.with_suffix(".json").write_bytes(page.with_suffix(".json").read_bytes())
    render_kept(copy)
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


@pytest.mark.parametrize(("times", "share", "met"), [(1.2, 0.1, True), (1.1, 0.85, True), (1.1, 0.5, False)])
def test_goal_when_it_names_a_ceiling_is_met_by_either(times: float, share: float, met: bool) -> None:
    target = Target(best=1.15, ceiling=0.8)
    [verdict] = verdicts(ENTRANTS, results(vllm=[20.0] * 3, ours=[20.0 * times] * 3), target, share=share)
    assert verdict.met is met


def test_goal_when_vllm_is_missing_is_not_measured() -> None:
    target = Target(best=1.3, static=2, grouped=3)
    best, static = verdicts(ENTRANTS, results(vllm=[], ours=[99.0] * 3), target, share=0.99)
    assert best.met is None
    assert static.met is True  # PEFT, which broke, has no line at all


def test_page_when_a_section_is_run_again_replaces_it_in_its_place(tmp_path: Path) -> None:
    page, order = tmp_path / "results" / "engine.md", ["tiny/a", "tiny/b"]
    for key, figure in (("tiny/b", "1×"), ("tiny/a", "2×"), ("tiny/b", "3×")):
        verdict = Verdict("against it", figure, "≥ 2×", figure != "1×")
        save(page, Section(key, f"title of {key}", ["", "rate"], [["Chorus", figure]], [verdict]), order=order)
    text = page.read_text()
    assert "1×" not in text
    assert text.index("## title of tiny/a") < text.index("## title of tiny/b")
    assert text.count("| met |") == 2
    kept = [Section.from_json(body) for body in json.loads(page.with_suffix(".json").read_text())["sections"]]
    assert render(kept) == text
