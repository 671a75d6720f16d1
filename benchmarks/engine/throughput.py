"""Goals about requests per second beside all peers: generation and labels."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.engine.ceilings import mean_flops
from benchmarks.engine.report import RATE_COLUMNS, Section, Verdict, best_peer, rate_rows, ratio
from benchmarks.engine.stage import Entrant, Result, Stage, interleave
from benchmarks.engine.workload import Workload, make_asks, make_tasks

CHORUS = Entrant("Chorus", "chorus")
SINGLE = Entrant("`generate`, one by one", "generate", "single", 1 / 16, 4)
STATIC = Entrant("`generate`, static batches of 32", "generate", "static", 1 / 2, 32)
SWITCHED = Entrant("PEFT, adapter switched for each request", "peft", "switched", 1 / 16, 4)
GROUPED = Entrant("PEFT, requests grouped by task", "peft", "grouped", each_task=32)
CHECKED = 32
_NO_VLLM = "vLLM is not in the run"


@dataclass(frozen=True)
class Target:
    """What a section of rates has to reach: times the best peer (or a share of the arithmetic ceiling), times the
    static batches, times PEFT switched and grouped; 0 asks nothing."""

    best: float
    ceiling: float = 0.0
    static: float = 0.0
    switched: float = 0.0
    grouped: float = 0.0


def vllm_entrants(stage: Stage) -> list[Entrant]:
    return [Entrant(f"vLLM, blocks of {size}", f"vllm-{size}") for size in stage.blocks or (32,)]


def continuous_entrants(stage: Stage) -> list[Entrant]:
    label = "transformers continuous batching, virtual ids, blocks of"
    return [Entrant(f"{label} {size}", f"continuous-{size}", "", 1 / 4, 32) for size in stage.continuous_blocks]


def generation(stage: Stage, key: str, title: str, work: Workload, target: Target) -> Section:
    """Every peer on requests that generate."""
    transformers = [SINGLE, STATIC, *continuous_entrants(stage)]
    entrants = [*transformers, SWITCHED, GROUPED, *vllm_entrants(stage), CHORUS]
    return rates(stage, key, title, work, entrants, target)


def labels(stage: Stage, key: str, title: str, work: Workload, target: Target) -> Section:
    """Peers produce one token with the label words' log-probabilities; Chorus scores the labels."""
    static = replace(STATIC, label="transformers, one forward of 32 rows, last logits only")
    entrants = [static, replace(GROUPED, label="PEFT, one forward, grouped by task"), *vllm_entrants(stage), CHORUS]
    return rates(stage, key, title, work, entrants, target)


def rates(stage: Stage, key: str, title: str, work: Workload, entrants: Sequence[Entrant], target: Target) -> Section:
    requests = stage.requests
    results = interleave(stage, {"": work}, entrants, requests=requests, check=min(CHECKED, requests))
    ceiling = arithmetic_ceiling(stage, work, requests)
    section = Section(key, f"{stage.shape.name}: {title}", RATE_COLUMNS, rate_rows(entrants, results))
    ours = results[CHORUS.label]
    if ours.values:
        section.verdicts = verdicts(entrants, results, target, share=ours.median / ceiling)
        statistics_of_ours = stage.ask("chorus", "statistics")
        section.notes.append(
            f"the arithmetic alone allows {ceiling:.3g} requests/s in {stage.shape.dtype}; Chorus reaches "
            f"{100 * ours.median / ceiling:.0f} % of it, with {100 * statistics_of_ours['padding']:.0f} % of prefilled "
            f"tokens padding since it started"
        )
    section.raw = {label: result.values for label, result in results.items()} | {"ceiling": ceiling}
    return section


def arithmetic_ceiling(stage: Stage, work: Workload, requests: int) -> float:
    """Requests per second that the needed products take at the fastest rate measured now."""
    speeds: list[float] = [max(stage.ask("ceilings", "measure")["gemm"].values()) for _ in range(min(3, stage.rounds))]
    tasks = make_tasks(work, hidden=stage.shape.hidden, vocabulary=stage.shape.vocabulary)
    asks = make_asks(work, tasks, vocabulary=stage.shape.vocabulary, turn=1, count=requests)
    return statistics.median(speeds) / mean_flops(stage.shape, work, tasks, asks)


def verdicts(entrants: Sequence[Entrant], results: dict[str, Result], target: Target, *, share: float) -> list[Verdict]:
    """What the figures say to each goal; `share` is ours of the arithmetic ceiling. Without vLLM in the run, nothing is
    the best peer."""
    ours = results[CHORUS.label]
    said = []
    best = best_peer(entrants, results)
    if best is not None:
        times = ratio(ours, results[best])
        measured = any(e.peer.startswith("vllm") and results[e.label].values for e in entrants)
        goal = f"≥ {target.best:g}×"
        met = times >= target.best
        if target.ceiling:
            goal += f" or ≥ {100 * target.ceiling:.0f} % of the ceiling"
            met = met or share >= target.ceiling
        figure = f"{times:.2f}×, {100 * share:.0f} % of the arithmetic ceiling"
        what = f"against the best peer ({best if measured else _NO_VLLM})"
        said.append(Verdict(what, figure, goal, met if measured else None))
    others = ((STATIC.label, target.static), (SWITCHED.label, target.switched), (GROUPED.label, target.grouped))
    for label, wanted in others:
        if wanted and results[label].values:
            times = ratio(ours, results[label])
            said.append(Verdict(f"against {label}", f"{times:.2f}×", f"≥ {wanted:g}×", times >= wanted))
    return said
