"""Every way to do a task, on public sets: `app.compare` with the starters' templates, and docs/results/methods.md.

    python -m benchmarks.methods --data DIR [--time-box MINUTES] [--only sst2 …] [--work FOLDER] [--write docs/results]

DIR holds sst2, snli, ag_news, trec, subj, qqp, e2e and disease_ontology as JSON lines. Six sets have labels and all
contestants, and so have two tasks cut from sets that pretraining never sees (`benchmarks/unseen.py`); e2e is text to
write, for prompts, prefixes and weights; plain prompts are taken apart (length, start, rate, rows) on two sets.
Every run is written to FOLDER when it ends, and the same command goes on with what is missing. `--page` only writes the
page of what is there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from app.compare.budget import Budget
from app.compare.cells import Cells
from app.compare.page import page, title_of
from app.compare.pictures import pictures
from app.compare.report import document
from app.compare.run import Wanted, conditions, run
from app.compare.tasks import Limits, TaskFiles
from benchmarks.methods_goals import goals
from benchmarks.starters import RECIPES
from benchmarks.starters.mended import MENDED
from benchmarks.starters.rows import write_mended
from benchmarks.unseen import CUTS, Cut, files_of, write_rows

LABELLED = ("sst2", "trec", "subj", "ag_news", "snli", "qqp")
CUT = tuple(cut.name for cut in CUTS)
WRITTEN = "e2e"
TAKEN_APART = ("sst2", "trec")
AXES = ("length", "init", "rate", "rows")
WRITERS = ("zero_shot", "few_shot", "prompt_tuning", "full", "prefix_tuning", "lora")
BUDGET = Budget(steps=150)
LABEL_LIMITS, TEXT_LIMITS = Limits(train=4000, dev=160, test=600), Limits(train=3000, dev=100, test=150)


@dataclass(frozen=True)
class Part:
    """One folder of cells: sets that are compared together."""

    name: str
    wanted: Wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--work", type=Path, default=Path(".comparing"), help="folder for the cells")
    parser.add_argument("--write", type=Path, default=Path("docs/results"), help="folder for page, document, pictures")
    parser.add_argument("--only", action="append", choices=[*LABELLED, *CUT, WRITTEN], help="only this set; repeat it")
    parser.add_argument("--methods", help="names with commas between; all unless given")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--backbone", action="append", default=[], help="another model, for plain prompts by backbone")
    parser.add_argument("--time-box", type=float, help="minutes after which no run begins")
    parser.add_argument("--page", action="store_true", help="only write the page of what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    deadline = None if arguments.time_box is None else time.monotonic() + 60 * arguments.time_box
    every = parts(arguments.data, arguments.work, arguments.model, arguments.only, arguments.backbone)
    if arguments.methods:
        names = tuple(arguments.methods.split(","))
        every = [replace(one, wanted=replace(one.wanted, methods=names)) for one in every]
    if not arguments.page:
        write_rows(arguments.data, cut_folder(arguments.work), cuts_in(arguments.only))
        write_mended(arguments.data, cut_folder(arguments.work))
        for part in every:
            finished = run(replace(part.wanted, deadline=deadline), tell=tell)
            if not finished:
                print(f"the time box ended within {part.name}; the same command goes on", flush=True)
                break
    write([one.wanted.out for one in every], arguments.write)


def tell(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)


def parts(
    data: Path, work: Path, model: str, only: Sequence[str] | None = None, backbones: Sequence[str] = ()
) -> list[Part]:
    """The labelled sets in one folder, the texts in another: what is served together is compared together."""
    labelled = [name for name in LABELLED if not only or name in only]
    folder = "labels" if len(labelled) == len(LABELLED) else "-".join(labelled)
    found = []
    if labelled:
        wanted = Wanted(
            files=[labels_of(data, work, name) for name in labelled],
            model=model,
            budget=BUDGET,
            limits=LABEL_LIMITS,
            out=work / folder,
            ablate=(*AXES, "backbone") if backbones else AXES,
            ablate_tasks=TAKEN_APART,
            backbones=backbones,
        )
        found.append(Part(folder, wanted))
    if cut := cuts_in(only):
        files = [files_of(one, cut_folder(work)) for one in cut]
        folder = "unseen" if len(cut) == len(CUTS) else "-".join(one.name for one in cut)
        found.append(Part(folder, Wanted(files, model, BUDGET, LABEL_LIMITS, work / folder)))
    if not only or WRITTEN in only:
        text = TaskFiles(
            name=WRITTEN, data=data / WRITTEN / "train.jsonl", dev=data / WRITTEN / "dev.jsonl",
            test=data / WRITTEN / "test.jsonl", template="<prompt:20>{input}\nDescription:",
        )  # fmt: skip
        found.append(Part(WRITTEN, Wanted([text], model, BUDGET, TEXT_LIMITS, work / WRITTEN, WRITERS)))
    return found


def cuts_in(only: Sequence[str] | None) -> list[Cut]:
    return [one for one in CUTS if not only or one.name in only]


def cut_folder(work: Path) -> Path:
    """Where the rows that are cut for the comparison lie."""
    return work / "rows"


def labels_of(data: Path, work: Path, name: str) -> TaskFiles:
    """A set with its starter's template and words."""
    recipe = next(recipe for recipe in RECIPES if recipe.test == name)
    assert recipe.words is not None
    folder = (cut_folder(work) if name in MENDED else data) / name
    return TaskFiles(
        name=name,
        data=folder / "train.jsonl",
        dev=folder / "dev.jsonl" if (data / name / "dev.jsonl").is_file() else None,
        test=folder / "test.jsonl",
        template=recipe.template,
        verbalizer={label: [word] for label, word in recipe.words.items()},
    )


def write(folders: Sequence[Path], out: Path, *, name: str = "methods", title: str = "Methods side by side") -> None:
    """One page of all parts that have begun, `name`.md, with its document and its pictures."""
    found = joined([document(Cells(folder)) for folder in folders if (folder / "cells.jsonl").is_file()])
    found["about"]["conditions"] = conditions()
    shown = out / name
    shown.mkdir(parents=True, exist_ok=True)
    for old in shown.glob("*.svg"):
        old.unlink()
    drawn = pictures(found)
    for file, (_, text) in drawn.items():
        (shown / file).write_text(text, encoding="utf-8")
    links = {caption: f"{name}/{file}" for file, (caption, _) in drawn.items()}
    table = list(goals(found, LABELLED))
    if table:
        table = ["", "## Goals", "", "| goal | reached | wanted | |", "|---|---|---|---|", *table, ""]
    text = page(found, title=title, pictures=links) + "\n".join(
        [*table, "## To be borne in mind", "", *cautions(found), ""]
    )
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def cautions(found: dict[str, Any]) -> Iterator[str]:
    """What a reader must know of the sets and of the model."""
    for recipe in RECIPES:
        if recipe.caution and recipe.test in found["tasks"]:
            yield f"- {recipe.test}: {recipe.caution}."
    more = ", ".join(
        f"{recipe.test} {recipe.steps}" for recipe in RECIPES if recipe.words and recipe.test in found["tasks"]
    )
    budget = found["about"]["budget"]
    yield (
        f"- {budget['steps']} steps of {budget['batch_size']} rows are few for prompts, which move a model from "
        f"outside. The starter prompts on the same sets have more of 32 rows ({more}); the README has their scores."
    )
    yield "- One seed, and one small model: the order of methods may differ on yours, which `chorus compare` is for."
    edge = {min(BUDGET.grid), max(BUDGET.grid)}
    for name, task in found["tasks"].items():
        at = [title_of(of) for of, one in task["contestants"].items() if one.get("times") in edge]
        if at:
            yield f"- {name}: the rate chosen lies at the grid's edge for {', '.join(at)}; a wider grid may do better."


def joined(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One document of several with one budget and one model: means and serving are the first's."""
    first, *others = documents
    for other in others:
        if other["about"] != first["about"]:
            raise SystemExit("the parts were run with different models or budgets: remove one, or choose --work")
    tasks = {name: of for one in documents for name, of in one["tasks"].items()}
    return first | {"tasks": tasks, "ablations": [of for one in documents for of in one["ablations"]]}


if __name__ == "__main__":
    main()
