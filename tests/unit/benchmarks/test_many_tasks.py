from __future__ import annotations

from collections import Counter

import pytest

from benchmarks import many_tasks
from benchmarks.many_tasks import Traffic, render


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_tasks, "TASKS", 40)


@pytest.mark.usefixtures("few")
def test_traffic_follows_zipfs_law_over_tasks_in_no_order() -> None:
    traffic = Traffic("labels")
    harmonic = [sum(1 / rank for rank in range(1, n + 1)) for n in (5, 40)]
    assert traffic.reach(5) == pytest.approx(harmonic[0] / harmonic[1])
    counts = Counter(traffic.drawn(0, 20_000))
    top = counts.most_common(5)
    assert sum(count for _, count in top) / 20_000 == pytest.approx(traffic.reach(5), abs=0.03)
    assert [task for task, _ in top] != [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("few")
def test_rounds_are_the_same_for_every_engine_and_share_no_text() -> None:
    one, other = Traffic("generate"), Traffic("generate")
    rows = [[(task, request.rows[0].row.ids) for request, task in one.requests(turn, 30)] for turn in range(2)]
    assert rows[0] == [(task, request.rows[0].row.ids) for request, task in other.requests(0, 30)]
    assert not {ids for _, ids in rows[0]} & {ids for _, ids in rows[1]}


def test_page_shows_the_median_of_each_rounds_ratio() -> None:
    part = {"conditions": "here", "runner": "fast", "requests": 100, "reused": 0.6, "reach": 0.7}
    page = render({"labels": {**part, "seconds": [[2.0, 1.0], [1.0, 0.9], [4.0, 3.0]]}})
    assert "| 4 labels scored | 50 /s | 100 /s | **0.75** | 60% | 70% |" in page
