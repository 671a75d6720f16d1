"""What the comparison of methods says to its goals, from the page's own document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from app.compare.contestants import BY_NAME
from app.compare.page import title_of
from benchmarks.unseen import CUTS

UNSEEN = ("trec", "subj", *(cut.name for cut in CUTS))
"""Sets that the bundled backbone never saw in pretraining."""


def goals(found: dict[str, Any], labelled: Sequence[str]) -> Iterator[str]:
    """Lines of a table: goal, reached, wanted, verdict. Nothing for what is not finished."""
    tasks = {name: of for name, of in found["tasks"].items() if name in labelled}
    whole = len(tasks) == len(labelled)
    if whole:
        yield from _prompts_to_full(tasks, "the six sets", 0.97)
    unseen = {name: of for name, of in found["tasks"].items() if name in UNSEEN}
    if len(unseen) == len(UNSEEN):
        yield from _prompts_to_full(unseen, f"unseen sets ({', '.join(UNSEEN)})", 0.95)
    if whole:
        yield from _ensembles(tasks)


def _prompts_to_full(tasks: dict[str, Any], where: str, wanted: float) -> Iterator[str]:
    names = [name for name, one in BY_NAME.items() if one.is_prompt and all(_done(of, name) for of in tasks.values())]
    if not names or not all(_done(of, "full") for of in tasks.values()):
        return
    single = max(names, key=lambda name: sum(of["contestants"][name]["dev"] for of in tasks.values()))
    each = {task: _best_by_dev(of, names) for task, of in tasks.items()}
    whole = sum(_test(of, "full") for of in tasks.values())
    one = sum(_test(of, single) for of in tasks.values()) / whole
    best = sum(_test(of, each[task]) for task, of in tasks.items()) / whole
    for what, ratio in (
        (f"one method for all by dev rows, {title_of(single)}", one),
        ("each set's best by dev rows", best),
    ):
        yield _line(f"mean over {where}: {what} ÷ full fine-tuning", f"{ratio:.3f}", f"≥ {wanted:g}", ratio >= wanted)


def _ensembles(tasks: dict[str, Any]) -> Iterator[str]:
    gains = {
        name: of["pairs"]["ensemble_vs_members"] for name, of in tasks.items() if "ensemble_vs_members" in of["pairs"]
    }
    if len(gains) < len(tasks):
        return
    better = [name for name, one in gains.items() if one["gain"] > 0]
    sure = [name for name, one in gains.items() if one["interval"][0] > 0]
    told = (
        f"better on {len(better)} of {len(gains)} sets ({', '.join(better) or 'none'}), interval above 0 on {len(sure)}"
    )
    yield _line("ensemble of five against the mean of its members", told, "better on ≥ 4", len(better) >= 4)


def _best_by_dev(task: dict[str, Any], names: Sequence[str]) -> str:
    return max(names, key=lambda name: task["contestants"][name]["dev"])


def _done(task: dict[str, Any], name: str) -> bool:
    return "test" in task["contestants"].get(name, {})


def _test(task: dict[str, Any], name: str) -> float:
    score: float = task["contestants"][name]["test"][task["metric"]]["score"]
    return score


def _line(what: str, reached: str, wanted: str, met: bool) -> str:
    return f"| {what} | {reached} | {wanted} | {'met' if met else '**not met**'} |"
