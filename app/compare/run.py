"""One command's worth: read the rows, run what is wanted and not finished, write page, document and pictures."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from app.backbone import BackboneConfig, load_backbone
from app.compare.ablations import ablate, check_axes
from app.compare.budget import Budget
from app.compare.cells import Cells
from app.compare.comparison import Comparison, Tell, TimeIsUp
from app.compare.contestants import choose
from app.compare.page import page
from app.compare.pictures import pictures
from app.compare.report import document
from app.compare.setting import Load
from app.compare.tasks import Limits, TaskFiles, read_task
from app.compare.together import serve


@dataclass(frozen=True)
class Wanted:
    """What a comparison is asked for. `methods` None: all. `backbones` are other models for the ablation of that name;
    `ablate_tasks` None: every task."""

    files: Sequence[TaskFiles]
    model: str
    budget: Budget
    limits: Limits
    out: Path
    methods: Sequence[str] | None = None
    ablate: Sequence[str] = ()
    ablate_tasks: Sequence[str] | None = None
    ablate_seeds: int = 1
    backbones: Sequence[str] = ()
    deadline: float | None = None


def run(wanted: Wanted, *, tell: Tell = print, load: Load | None = None) -> bool:
    """Run to the end or to the deadline, and write `comparison.md`, `comparison.json` and pictures to `wanted.out`;
    whether all was done. `load` gives the model in place of `wanted.model`.

    Raises InvalidRequest and its kin for what cannot be done, UnsupportedBackbone, Conflict where `out` holds results
    of another model, budget or rows.
    """
    contestants, axes = choose(wanted.methods), check_axes(wanted.ablate)
    load = load or loader(wanted.model)
    backbone = load()
    tasks = [read_task(files, backbone.family, wanted.limits, seed=wanted.budget.seed) for files in wanted.files]
    about = {"model": backbone.name, "fingerprint": backbone.fingerprint, "budget": wanted.budget.describe()}
    del backbone
    cells = Cells(wanted.out, about)
    tell(f"{len(contestants)} methods, {len(tasks)} tasks; grid {wanted.budget.grid}, {wanted.budget.steps} steps each")
    comparison = Comparison(load, tasks, contestants, wanted.budget, cells, tell, wanted.deadline)
    try:
        comparison.run()
        serve(comparison)
        names = wanted.ablate_tasks if wanted.ablate_tasks is not None else [task.name for task in tasks]
        others = {Path(source).name: loader(source) for source in wanted.backbones}
        ablate(comparison, axes, names, backbones=others, seeds=wanted.ablate_seeds)
        finished = True
    except TimeIsUp:
        finished = False
    write(cells, wanted.out)
    return finished


def loader(source: str) -> Load:
    return lambda: load_backbone(BackboneConfig(source, dtype="float32"))


def write(cells: Cells, folder: Path, *, name: str = "comparison", title: str = "Methods side by side") -> None:
    """Page, document and pictures of what is finished."""
    found = document(cells)
    found["about"]["conditions"] = conditions()
    drawn = pictures(found)
    shown = folder / name
    shown.mkdir(parents=True, exist_ok=True)
    for file, (_, text) in drawn.items():
        (shown / file).write_text(text, encoding="utf-8")
    links = {caption: f"{name}/{file}" for file, (caption, _) in drawn.items()}
    (folder / f"{name}.md").write_text(page(found, title=title, pictures=links), encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def conditions() -> str:
    """Where figures were taken, in a few words."""
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {threads} CPU thread{'s' if threads > 1 else ''}, torch {torch.__version__}"
