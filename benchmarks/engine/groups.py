"""Goals about several tasks on one text: fan-out and ensembles. Groups are asked one after another, each alone."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.engine.report import Section, Verdict, ratio
from benchmarks.engine.stage import Entrant, Result, Stage, interleave
from benchmarks.engine.workload import Workload

_GROUPS = 8  # a round
_SUFFIX = Workload(kind="labels", tasks=8, prompt=(20, 20), text=(512, 512), suffix=True, seed=51)
_LEADING = Workload(kind="labels", tasks=8, prompt=(20, 20), seed=52)
_WRITING = Workload(kind="generate", tasks=8, prompt=(20, 20), seed=53)
# Seeds of their own: a text that one line asked may stand in a peer's cache when the next line asks.
FANOUT = {"one": _SUFFIX, "eight": replace(_SUFFIX, members=8, seed=55)}
ENSEMBLES = {
    "write": _WRITING,
    "write-5": replace(_WRITING, members=5, coupled=True),
    "suffix": replace(_SUFFIX, seed=54),
    "suffix-5": replace(_SUFFIX, seed=54, members=5),
    "leading": _LEADING,
    "leading-5": replace(_LEADING, members=5),
}
COLUMNS = ["", "one task, ms", "together, ms", "times"]


def fanout(stage: Stage, key: str) -> Section:
    """One text of 512 tokens, eight tasks with suffix prompts and labels: Chorus, and vLLM with the text first."""
    block = stage.blocks[0] if stage.blocks else 32
    lines = {"**Chorus**": "chorus", f"vLLM, blocks of {block}": f"vllm-{block}"}
    entrants = [Entrant(f"{label} {slot}", peer, "each", slot=slot) for label, peer in lines.items() for slot in FANOUT]
    results = interleave(stage, FANOUT, entrants, requests=_GROUPS)
    section = Section(key, f"{stage.shape.name}: eight suffix tasks on one text of 512 tokens", COLUMNS)
    for label in lines:
        section.rows.append(_row(label, results[f"{label} one"], results[f"{label} eight"]))
    ours, theirs = results["**Chorus** eight"], results[f"vLLM, blocks of {block} eight"]
    _judge(section, "eight tasks against one", results["**Chorus** one"], ours, 1.4)
    if theirs.values and ours.values:
        section.notes.append(f"eight tasks together: Chorus is {ratio(ours, theirs):.2f}× as fast as vLLM")
    section.notes.append("P=20, four single-token labels each; groups one after another, texts fresh")
    section.raw = {label: result.values for label, result in results.items()}
    return section


def ensembles(stage: Stage, key: str) -> Section:
    """Five members against one: writing together, scoring behind a shared text, scoring with leading prompts."""
    entrants = [Entrant(slot, "chorus", "each", slot=slot) for slot in ENSEMBLES]
    results = interleave(stage, ENSEMBLES, entrants, requests=_GROUPS)
    section = Section(key, f"{stage.shape.name}: ensembles of five", COLUMNS)
    for slot, label, limit in (
        ("write", "16 tokens, chosen together", 2.0),
        ("suffix", "labels, suffix prompts behind 512 tokens", 1.4),
        ("leading", "labels, leading prompts", 5.0),
    ):
        section.rows.append(_row(label, results[slot], results[f"{slot}-5"]))
        _judge(section, label, results[slot], results[f"{slot}-5"], limit)
    section.notes.append("P=20; one group at a time; texts of 24–48 tokens where not said")
    section.raw = {label: result.values for label, result in results.items()}
    return section


def _judge(section: Section, what: str, one: Result, many: Result, limit: float) -> None:
    if one.values and many.values:
        times = ratio(one, many)
        section.verdicts.append(Verdict(what, f"{times:.2f}× the time", f"≤ {limit:g}×", times <= limit))
    else:
        section.verdicts.append(Verdict(what, one.note or many.note, f"≤ {limit:g}×", None))


def _row(label: str, one: Result, many: Result) -> list[str]:
    if not (one.values and many.values):
        return [label, f"not measured: {one.note or many.note}", "", ""]
    return [label, f"{1000 / one.median:.3g}", f"{1000 / many.median:.3g}", f"{ratio(one, many):.2f}×"]
