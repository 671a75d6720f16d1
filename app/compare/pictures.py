"""A comparison's document as pictures: scores with intervals, scores beside bytes, ablations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from app.compare.contestants import BY_NAME
from app.compare.page import title_of
from app.compare.svg import Point, lines, ranked, scatter

_GROUPS = {"written": 7, "learned": 0, "searched": 0, "ensemble": 2, "weights": 1}


def pictures(found: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """File name → (caption, SVG)."""
    drawn: dict[str, tuple[str, str]] = {}
    for name, task in found["tasks"].items():
        rows = [(title, one) for title, one in task["contestants"].items() if "test" in one]
        if rows:
            metric = task["metric"]
            points = [(of, _point(one["test"][metric])) for of, one in rows]
            drawn[f"{name}.svg"] = _ranked(f"{name}: {metric} on test rows", points)
            stored = [(of, one) for of, one in rows if one["stored_bytes"] > 0]
            drawn[f"{name}-bytes.svg"] = _bytes(name, metric, stored)
    if found["over_tasks"]:
        points = [(of, _point(one)) for of, one in found["over_tasks"].items()]
        drawn["all.svg"] = _ranked("mean over all tasks", points)
    drawn |= dict(_ablations(found["ablations"]))
    return drawn


def _ranked(title: str, points: list[tuple[str, Point]]) -> tuple[str, str]:
    ordered = sorted(points, key=lambda item: -item[1].value)
    groups = [_GROUPS[BY_NAME[name].kind] for name, _ in ordered]
    return title, ranked(title, [(title_of(name), point) for name, point in ordered], groups=groups)


def _bytes(name: str, metric: str, rows: list[tuple[str, Any]]) -> tuple[str, str]:
    points = [(title_of(of), _point(one["test"][metric], x=math.log10(one["stored_bytes"]))) for of, one in rows]
    groups = [_GROUPS[BY_NAME[of].kind] for of, _ in rows]
    title = f"{name}: {metric} beside what one more task stores"
    return title, scatter(title, "bytes a task", points, groups=groups)


def _ablations(rows: list[Mapping[str, Any]]) -> Iterator[tuple[str, tuple[str, str]]]:
    good = [one for one in rows if "score" in one]
    for axis in dict.fromkeys(one["axis"] for one in good):
        mine = [one for one in good if one["axis"] == axis]
        names = list(dict.fromkeys(one["value"] for one in mine))
        series = []
        for task in dict.fromkeys(one["task"] for one in mine):
            points = [
                _mean([one for one in mine if (one["task"], one["value"]) == (task, value)], x)
                for x, value in enumerate(names)
                if any((one["task"], one["value"]) == (task, value) for one in mine)
            ]
            series.append((task, points))
        title = f"{axis}: score on test rows"
        yield f"by-{axis}.svg", (title, lines(title, names, series))


def _mean(rows: list[Mapping[str, Any]], x: float) -> Point:
    """One seed with its interval; of several, their mean, from the worst to the best."""
    if len(rows) == 1:
        return _point(rows[0], x=x)
    scores = [one["score"] for one in rows]
    return Point(x, sum(scores) / len(scores), min(scores), max(scores))


def _point(one: Mapping[str, Any], *, x: float = 0.0) -> Point:
    low, high = one["interval"]
    return Point(x, one["score"], low, high)
