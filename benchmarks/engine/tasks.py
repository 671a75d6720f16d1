"""The goal about a thousand tasks: what does a task cost?"""

from __future__ import annotations

import statistics
from dataclasses import replace
from itertools import count

from benchmarks.engine.pairs import Pair, in_pairs, spread
from benchmarks.engine.report import Section, Verdict
from benchmarks.engine.stage import Stage
from benchmarks.engine.workload import Workload

TURNS = ("one", "many", "many", "one")
_NAMES = {"one": "one task", "many": "1,000 tasks"}


def thousand_tasks(stage: Stage, key: str, kind: str) -> Section:
    """One task, then a thousand of the same mean length, in turns within each round."""
    common = Workload(kind="labels" if kind == "labels" else "generate", seed=41)
    works = {
        "one": replace(common, tasks=1, prompt=(52, 52), literals=(3, 3)),
        "many": replace(common, tasks=1000, prompt=(5, 100), literals=(0, 6)),
    }
    for slot, work in works.items():
        stage.prepare("chorus", slot, work)
    turns = count(1)

    def one_round() -> Pair:
        seconds = dict.fromkeys(works, 0.0)
        for slot in TURNS:
            answer = stage.ask("chorus", "measure", turn=next(turns), count=stage.requests, slot=slot)
            seconds[slot] += answer["seconds"]
        return 2 * stage.requests / seconds["one"], 2 * stage.requests / seconds["many"]

    found = in_pairs(one_round, stage.rounds)
    section = Section(key, f"{stage.shape.name}: 1,000 distinct tasks, {kind}", ["", "requests/s", "range"])
    for i, name in enumerate(_NAMES.values()):
        rates = found.side(i)
        span = f"{min(rates):.3g}–{max(rates):.3g}"
        section.rows.append([f"Chorus, {name}", f"{statistics.median(rates):.3g}", span])
    times = statistics.median(found.ratios)
    section.verdicts = [Verdict("1,000 tasks ÷ one task", spread(found.ratios), "≥ 0.95", times >= 0.95)]
    section.notes = [
        "prompts of 5–100 vectors (mean 52) and template words of their own, all resident; the one task has 52 vectors",
        f"each round: {', '.join(_NAMES[slot] for slot in TURNS)}, {stage.requests} requests each; the ratio is the "
        "median of the rounds' ratios, in brackets their range; a round in which either rate is below half of its "
        "median is repeated, at most twice, and told here",
        *found.told(*_NAMES.values()),
    ]
    section.raw = {name: found.side(i) for i, name in enumerate(_NAMES.values())} | {"disturbed": found.replaced}
    return section
