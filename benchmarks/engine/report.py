"""Sections of docs/results/engine.md: data that a JSON file beside it keeps, so that one section can be run anew alone.

Pure: no peers, no clocks.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engine.stage import ROWS, Entrant, Result

_INTRODUCTION = """# The engine beside what a user would pick instead

Written by `make bench` (`python -m benchmarks.engine`). All lines of a table were measured in one run, in interleaved
rounds on the same requests; figures are medians over the rounds, ratios are medians of each round's ratio. Each section
is a run of its own, at the time it says: the machine's speed changes within a day, so that figures of two sections
cannot be compared, only ratios within one. What bounds goals that were missed: [engine-bounds.md](engine-bounds.md).

Models have random weights: speed does not depend on what weights say. `tiny`: Llama shape, hidden 384, 8 layers, 6
heads, feed-forward 1,024, vocabulary 8,192, float32. `0.5b`: Qwen2.5-0.5B's shape, bfloat16. Requests: a task at
random, its prompt of P vectors, 24–48 fresh text tokens unless said, 16 new tokens, greedy, no end token. Prompts are
warm, texts never repeat. Peers are given their inputs ready-made (embeddings included) before the clock starts.
"""
PEERS = "How the peers are run"
_PEERS = f"""## {PEERS}

- PEFT, requests grouped by task: every task has 32 requests in a round, so that batches, which hold one task each, hold
  32 rows. The padded rows of such a batch are not exact, and that is why some answers differ from `generate`'s where
  it was no close call: PEFT drops the caller's positions and puts the prompt before the padding, so that between a
  short row's prompt and its text lie places that attention skips but positions count.
- transformers' continuous batching has blocks of 32 tokens where the table has no further line; other sizes are
  measured with `--continuous-blocks 32 64 128`.
- vLLM runs offline and in one process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`). It then computes with as many OpenMP
  threads as there are cores, bound to none. By default it takes a second process, binds the threads of the one that
  computes, and keeps one core free for the other, which schedules: of two cores one would compute. Where vLLM would
  have fewer threads than the others it is not measured at all. Each of its block sizes is a line. It finds prompts,
  which it is given as embeddings, in its prefix cache by whole blocks: with blocks of 32 the last 0–31 vectors of a
  prompt are computed anew for each request. A template's own words between prompt and text are kept like the
  prompt: by vLLM in whole blocks, by Chorus all (in service, less a last token into which texts may be merged).
- Of `generate` and PEFT, what enters the output layer is laid out in sequence first, which a user's own program has to
  do itself: of a slice, torch's product in bfloat16 copies the weight once for each row."""


@dataclass(frozen=True)
class Verdict:
    """One goal: `figure` as measured, `goal` as set, `met` None where it was not measured."""

    what: str
    figure: str
    goal: str
    met: bool | None


@dataclass
class Section:
    """One table. `rows` are cells of `columns`; `notes` are lines below it."""

    key: str
    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conditions: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Section:
        return cls(**{**body, "verdicts": [Verdict(**verdict) for verdict in body["verdicts"]]})


def ratio(ours: Result, theirs: Result) -> float:
    """Median over the rounds of ours ÷ theirs."""
    return statistics.median(a / b for a, b in zip(ours.values, theirs.values, strict=True))


def best_peer(entrants: Sequence[Entrant], results: dict[str, Result]) -> str | None:
    """The label of the fastest line that is not ours, None if nothing was measured."""
    labels = [entrant.label for entrant in entrants if not entrant.ours and results[entrant.label].values]
    return max(labels, key=lambda label: results[label].median, default=None)


def rate_rows(entrants: Sequence[Entrant], results: dict[str, Result]) -> list[list[str]]:
    """Cells: label, requests/s, its range, ours ÷ it, requests a round, rows a batch, answers that differ from
    `generate`'s."""
    [ours] = [results[entrant.label] for entrant in entrants if entrant.ours]
    rows = []
    for entrant in entrants:
        result = results[entrant.label]
        if not result.values:
            rows.append([entrant.label, f"not measured: {result.note}", *[""] * (len(RATE_COLUMNS) - 2)])
            continue
        times = f"{ratio(ours, result):.2f}×" if ours.values and not entrant.ours else ""
        differ = f"{result.differing} of {result.checked} ({result.close} at a close call)" if result.checked else ""
        span = f"{min(result.values):.3g}–{max(result.values):.3g}"
        label = f"**{entrant.label}**" if entrant.ours else entrant.label
        batch = f"≤ {ROWS}" if result.rows_a_batch is None else f"{result.rows_a_batch:.3g}"
        rows.append([label, f"{result.median:.3g}", span, times, str(result.requests), batch, differ])
    return rows


RATE_COLUMNS = [
    "",
    "requests/s",
    "range",
    "Chorus ÷ it",
    "requests a round",
    "rows a batch",
    "answers unlike `generate`'s",
]


def render(sections: Sequence[Section]) -> str:
    """The whole page: what was reached, how peers are run, then every section."""
    lines = [_INTRODUCTION, "## Goals", "", "| goal | reached | wanted | | measured |", "|---|---|---|---|---|"]
    for section in sections:
        when = section.conditions.partition(";")[0]
        lines += [
            f"| {section.title}: {v.what} | {v.figure} | {v.goal} | {_word(v.met)} | {when} |" for v in section.verdicts
        ]
    lines += ["", _PEERS]
    for section in sections:
        lines += ["", f"## {section.title}", "", section.conditions, ""]
        lines += [f"| {' | '.join(section.columns)} |", "|" + "---|" * len(section.columns)]
        lines += [f"| {' | '.join(row)} |" for row in section.rows]
        lines += [""] + [f"- {v.what}: {v.figure} (goal {v.goal}): {_word(v.met)}" for v in section.verdicts]
        lines += [f"- {note}" for note in [*section.notes, *_about_peers(section)]]
    return "\n".join(lines) + "\n"


def _about_peers(section: Section) -> list[str]:
    """Where a table has peers whose figures need a word, where that stands."""
    peers = [name for name in ("PEFT", "continuous batching", "vLLM") if any(name in row[0] for row in section.rows)]
    return [f"{', '.join(peers)}: see [{PEERS.lower()}](#{PEERS.lower().replace(' ', '-')})"] if peers else []


def save(path: Path, section: Section, *, order: Sequence[str]) -> None:
    """Put a section into the page and the JSON beside it, in the place of its former self."""
    store = path.with_suffix(".json")
    kept = json.loads(store.read_text(encoding="utf-8"))["sections"] if store.exists() else []
    sections = {body["key"]: Section.from_json(body) for body in kept}
    sections[section.key] = section
    places = {key: i for i, key in enumerate(order)}
    ordered = sorted(sections.values(), key=lambda one: (places.get(one.key, len(places)), one.key))
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps({"sections": [s.as_json() for s in ordered]}, indent=1) + "\n", encoding="utf-8")
    path.write_text(render(ordered), encoding="utf-8")


def render_kept(path: Path) -> None:
    """Write the page anew from what was measured before."""
    kept = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sections"]
    path.write_text(render([Section.from_json(body) for body in kept]), encoding="utf-8")


def _word(met: bool | None) -> str:
    return {True: "met", False: "**not met**", None: "**not measured**"}[met]
