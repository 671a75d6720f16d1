from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import many_tasks
from benchmarks.engine.models import SHAPES
from benchmarks.many_tasks import RESERVE, Traffic, prompt_bytes, render, room_for

TINY, HALF = SHAPES["tiny"], SHAPES["0.5b"]
PART = {"conditions": "here", "runner": "fast", "requests": 100, "reused": 0.6, "reach": 0.7, "disturbed": []}
SIZE = {"prompt_bytes": 240 << 10, "room": 10_000}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_tasks, "TASKS", 40)


@pytest.mark.usefixtures("few")
def test_traffic_follows_zipfs_law_over_tasks_in_no_order() -> None:
    traffic = Traffic("labels", TINY)
    harmonic = [sum(1 / rank for rank in range(1, n + 1)) for n in (5, 40)]
    assert traffic.reach(5) == pytest.approx(harmonic[0] / harmonic[1])
    counts = Counter(traffic.drawn(0, 20_000))
    top = counts.most_common(5)
    assert sum(count for _, count in top) / 20_000 == pytest.approx(traffic.reach(5), abs=0.03)
    assert [task for task, _ in top] != [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("shape", [TINY, HALF], ids=lambda shape: shape.name)
def test_rounds_are_the_same_for_every_engine_and_share_no_text(shape: many_tasks.Shape) -> None:
    one, other = Traffic("generate", shape), Traffic("generate", shape)
    assert one.tasks[0].vectors.shape == (20, shape.hidden)
    rows = [[(task, request.rows[0].row.ids) for request, task in one.requests(turn, 30)] for turn in range(2)]
    assert rows[0] == [(task, request.rows[0].row.ids) for request, task in other.requests(0, 30)]
    assert not {ids for _, ids in rows[0]} & {ids for _, ids in rows[1]}


def test_room_for_all_prompts_is_bounded_by_memory() -> None:
    assert prompt_bytes(HALF) == 20 * 2 * 24 * 2 * 64 * 2 == 240 << 10  # keys and values, layers, groups, width, bf16
    assert prompt_bytes(TINY) == 480 << 10
    assert room_for(HALF, 16 << 30) == 10_000  # 2.3 GiB beside what is left to others
    assert room_for(HALF, RESERVE + (1 << 30)) == (1 << 30) // (240 << 10) == 4369
    assert room_for(HALF, 0) == 500


def test_page_shows_the_median_of_each_rounds_ratio() -> None:
    page = render({"tiny/labels": {**PART, **SIZE, "rates": [[100.0, 50.0], [110.0, 99.0], [40.0, 30.0]]}})
    assert "| tiny | 4 labels scored | 50 /s | 100 /s | **0.75 (0.50–0.90)** | 60% | 70% |" in page


def test_page_when_one_model_is_run_keeps_the_others_rows() -> None:
    rates = {"rates": [[10.0, 9.0]]}
    disturbed = {"disturbed": ["round 2 was disturbed (all resident 1/s, room for 500 1/s) and repeated"]}
    page = render(
        {
            "0.5b/generate": {**PART, **SIZE, **rates, **disturbed, "room": 4000},
            "tiny/labels": {**PART, **SIZE, **rates, "conditions": "there"},
        }
    )
    assert page.index("| tiny | 4 labels scored |") < page.index("| 0.5b | 16 new tokens, greedy |")
    assert "- tiny, 4 labels scored: there;" in page
    assert "10,000 prompts of 240 KiB are 2.29 GiB: all fit." in page
    assert "10,000 prompts of 240 KiB are 2.29 GiB: room for 4,000, which stand for all." in page
    assert "  Round 2 was disturbed (all resident 1/s, room for 500 1/s) and repeated." in page


def test_page_in_the_repository_when_rendered_anew_is_the_same() -> None:
    page = Path(__file__).parents[3] / "docs" / "results" / "many-tasks.md"
    assert render(json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))) == page.read_text(encoding="utf-8")
