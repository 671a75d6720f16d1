"""Measure Chorus' engine beside its peers and write docs/results/engine.md.

    python -m benchmarks.engine [--goal generation …] [--model tiny …] [--rounds 5] [--requests 256] [--out FILE]

Without `--goal` every section is run, tiny first. Sections that are not run keep their figures of before. A smoke run:
`--goal labels --model tiny --rounds 1 --requests 64 --out /tmp/engine.md`.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.engine.groups import ensembles, fanout
from benchmarks.engine.models import SHAPES
from benchmarks.engine.report import Section, Verdict, render_kept, save
from benchmarks.engine.single import alone, memory, prefill
from benchmarks.engine.stage import VLLM, Stage
from benchmarks.engine.tasks import thousand_tasks
from benchmarks.engine.throughput import Target, generation, labels
from benchmarks.engine.wire import ROOT
from benchmarks.engine.workload import Workload

REQUESTS = {"tiny": 256, "0.5b": 128}
Run = Callable[[Stage, str], Section]

# Section by section: the goal's name on the command line, the section's name, what runs it.
SECTIONS: list[tuple[str, str, Run]] = [
    (
        "generation",
        "generation-mixed",
        lambda stage, key: generation(
            stage,
            key,
            "generation, P of 5–100, templates of their own",
            Workload(prompt=(5, 100), literals=(0, 6), seed=11),
            Target(best=1.3, switched=10, grouped=3),
        ),
    ),
    (
        "generation",
        "generation-100",
        lambda stage, key: generation(
            stage,
            key,
            "generation, P=100",
            Workload(prompt=(100, 100), seed=12),
            Target(best=1.15, ceiling=0.8, static=3.5, switched=10, grouped=3),
        ),
    ),
    (
        "generation",
        "generation-20",
        lambda stage, key: generation(
            stage,
            key,
            "generation, P=20",
            Workload(prompt=(20, 20), seed=13),
            Target(best=1.3, ceiling=0.8, static=2, switched=10, grouped=3),
        ),
    ),
    (
        "labels",
        "labels-100",
        lambda stage, key: labels(
            stage, key, "labels, P=100", Workload(kind="labels", prompt=(100, 100), seed=21), Target(best=1.3)
        ),
    ),
    (
        "labels",
        "labels-20",
        lambda stage, key: labels(
            stage, key, "labels, P=20", Workload(kind="labels", prompt=(20, 20), seed=22), Target(best=1.5)
        ),
    ),
    (
        "alone",
        "alone",
        lambda stage, key: alone(
            stage, key, "one request alone, P=20", Workload(prompt=(20, 20), new_tokens=32, seed=31)
        ),
    ),
    ("prefill", "prefill", prefill),
    ("tasks", "tasks-generate", lambda stage, key: thousand_tasks(stage, key, "generation")),
    ("tasks", "tasks-labels", lambda stage, key: thousand_tasks(stage, key, "labels")),
    ("fanout", "fanout", fanout),
    ("ensembles", "ensembles", ensembles),
    ("memory", "memory", memory),
]
GOALS = list(dict.fromkeys(goal for goal, _, _ in SECTIONS))


def main() -> None:
    arguments = parse()
    if arguments.render:
        render_kept(arguments.out)
        return
    order = [f"{model}/{name}" for model in SHAPES for _, name, _ in SECTIONS]
    for model in arguments.model or SHAPES:
        stage = Stage(
            model,
            arguments.work,
            rounds=arguments.rounds,
            requests=arguments.requests or REQUESTS[model],
            threads=arguments.threads,
            blocks=arguments.vllm_blocks if VLLM.exists() else [],
            continuous_blocks=arguments.continuous_blocks,
            only=arguments.peers,
        )
        try:
            for goal, name, run in SECTIONS:
                if (arguments.goal and goal not in arguments.goal) or name not in (arguments.section or [name]):
                    continue
                section = run(stage, f"{model}/{name}")
                section.conditions = conditions(stage)
                if arguments.rounds < 5 or arguments.peers:
                    section.verdicts = [Verdict(v.what, v.figure, v.goal, None) for v in section.verdicts]
                    section.notes.append("fewer than five rounds or peers left out: no goal counts as met")
                save(arguments.out, section, order=order)
                show(section)
        finally:
            stage.close()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goal", action="append", choices=GOALS)
    parser.add_argument(
        "--section", action="append", choices=[name for _, name, _ in SECTIONS], help="a part of a goal"
    )
    parser.add_argument("--model", action="append", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, help="in each round of the fastest peers; 256 on tiny, 128 on 0.5b")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--vllm-blocks", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--continuous-blocks", type=int, nargs="+", default=[32])
    parser.add_argument("--render", action="store_true", help="measure nothing, write the page from its JSON")
    parser.add_argument(
        "--peers", nargs="+", default=[], help="only these, by name: generate continuous peft vllm chorus"
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".peers" / "work", help="where models are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "engine.md")
    return parser.parse_args(argv)


def conditions(stage: Stage) -> str:
    """When and on what a section was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(stage.versions.items()))
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {stage.threads} cores of {processor()}, {platform.machine()}; "
        f"Python {platform.python_version()}, {versions}; {stage.shape.dtype}; {stage.rounds} rounds."
    )


def processor() -> str:
    """The processor's name, its family and model, which names of virtual machines hide, and what of it matters for
    matrix products."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "an unnamed processor"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    widest: list[str] = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    kind = [f"{key.removeprefix('cpu ')} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    told = ", ".join([*kind, *(widest or ["no vector units known"])])
    return f"{facts.get('model name', 'an unnamed processor')} ({told})"


def show(section: Section) -> None:
    """The section as plain text, while the run goes on."""
    print(f"\n{section.title}\n  {section.conditions}", flush=True)
    table = [section.columns, *section.rows]
    widths = [max(len(row[i]) for row in table if i < len(row)) for i in range(len(section.columns))]
    for row in table:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
    for verdict in section.verdicts:
        word = {True: "met", False: "NOT MET", None: "not measured"}[verdict.met]
        print(f"  {verdict.what}: {verdict.figure} (goal {verdict.goal}): {word}")
    for note in section.notes:
        print(f"  {note}", flush=True)


if __name__ == "__main__":
    main()
