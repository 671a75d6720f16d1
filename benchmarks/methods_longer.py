"""Prompts against weights where both learn for longer, on tasks the backbone never saw: docs/results/methods-longer.md.

    python -m benchmarks.methods_longer --data DIR [--steps 600] [--work FOLDER] [--write docs/results]

The report of all methods gives each 150 steps, which is what a bound of hours allows fifteen contestants on nine sets.
A prompt learns slower than weights do, and a new task has nothing in the model to lean on; so here the four unseen sets
are learned again at four times the steps, by those who matter: plain vectors, keys and values, all weights, LoRA. The
budget is equal for all of them, as there. DIR holds trec, subj, e2e and disease_ontology as JSON lines.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from app.compare.run import Wanted, run
from benchmarks.methods import BUDGET, LABEL_LIMITS, cut_folder, labels_of, tell, write
from benchmarks.methods_goals import UNSEEN
from benchmarks.starters.rows import write_mended
from benchmarks.unseen import CUTS, files_of, write_rows

METHODS = ("zero_shot", "prompt_tuning", "prefix_tuning", "full", "lora")
STEPS = 4 * BUDGET.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--work", type=Path, default=Path(".comparing"), help="folder for the cells")
    parser.add_argument("--write", type=Path, default=Path("docs/results"), help="folder for page, document, pictures")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--time-box", type=float, help="minutes after which no run begins")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = longer(arguments.data, arguments.work, arguments.model, arguments.steps)
    write_rows(arguments.data, cut_folder(arguments.work), CUTS)
    write_mended(arguments.data, cut_folder(arguments.work))
    deadline = None if arguments.time_box is None else time.monotonic() + 60 * arguments.time_box
    if not run(replace(chosen, deadline=deadline), tell=tell):
        print("the time box ended; the same command goes on", flush=True)
    write([chosen.out], arguments.write, name="methods-longer", title="Prompts and weights, learned for longer")


def longer(data: Path, work: Path, model: str, steps: int) -> Wanted:
    """The unseen sets in one folder, which is the budget's own."""
    cut = {one.name: files_of(one, cut_folder(work)) for one in CUTS}
    files = [cut.get(name) or labels_of(data, work, name) for name in UNSEEN]
    return Wanted(files, model, replace(BUDGET, steps=steps), LABEL_LIMITS, work / f"unseen-{steps}", METHODS)


if __name__ == "__main__":
    main()
