"""Short runs that settle choices of the recipe: each changes one thing, all compute for as long.

`python -m pretraining.experiments --data DIR --corpus DIR` runs what is not done yet of `experiments.toml`; with
`--page` it writes the table. How many steps a variant gets is measured: the seconds of the file by its seconds a step.
`--time` measures that alone, for all variants after one another on a quiet machine, and keeps it; the runs themselves
may then share their cores with other work, and give the same results.
"""

from __future__ import annotations

import argparse
import os
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretraining.errors import RecipeError
from pretraining.experiments_page import write_page
from pretraining.export import tokens_until
from pretraining.files import digest_of_json, read_json, write_json
from pretraining.packing import Texts, pack_stage, say
from pretraining.place import Place
from pretraining.recipe import Recipe, changed, read_raw, recipe_from, without_words
from pretraining.scoring import evaluate, summary
from pretraining.tokenizer import load_tokenizer
from pretraining.trainer import Meter, Trainer

HERE = Path(__file__).parent
TIMED_STEPS = 3


@dataclass(frozen=True)
class Experiment:
    """`raw`: the whole recipe as TOML would give it, but for the number of steps."""

    name: str
    question: str
    raw: Mapping[str, Any]

    def recipe(self, steps: int) -> Recipe:
        """Looked at and saved at its end alone."""
        quiet = {"steps": steps, "checkpoint_every": steps, "evaluate_every": 2 * steps}
        return recipe_from(changed(self.raw, {"train": {**quiet, "warm_up": max(1, min(100, steps // 10))}}))


def read_experiments(file: Path, recipe: Path) -> tuple[float, list[Experiment]]:
    """Seconds of computing a variant, and the variants. Raises RecipeError."""
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
        base = changed(without_words(read_raw(recipe)), raw.get("base", {}))
        made = [Experiment(one["name"], one["question"], changed(base, one["change"])) for one in raw["variants"]]
        seconds = float(raw["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{file} or {recipe} cannot be read: {error!r}") from None
    if len({one.name for one in made}) != len(made):
        raise RecipeError(f"{file} names two variants alike")
    for one in made:
        one.recipe(100)
    return seconds, made


class Bench:
    """Where experiments run. Texts are packed once for all that pack alike."""

    def __init__(self, data: Path, corpus: Path, work: Path) -> None:
        self.data, self.corpus, self.work = data, corpus, work

    def result_file(self, experiment: Experiment, seconds: float) -> Path:
        key = digest_of_json({"raw": experiment.raw, "seconds": seconds})
        return self.work / "results" / f"{key[:16]}.json"

    def run(self, experiment: Experiment, seconds: float) -> dict[str, Any]:
        """One variant, from fresh weights to its evaluation; its result is kept, and found when asked for again."""
        kept = self.result_file(experiment, seconds)
        if kept.is_file():
            return dict(read_json(kept))
        place = self.place(experiment)
        steps = max(10, round(seconds / self.step_seconds(experiment, place)))
        trainer = self._trainer(experiment, place, steps)
        began = time.monotonic()
        meter = Meter(place.log, place.device)
        while trainer.step < steps:
            trainer.train_step(meter)
            if trainer.step % trainer.recipe.train.log_every == 0:
                say(f"{experiment.name}: {meter.write(trainer.step)}")
        spent = time.monotonic() - began
        last = evaluate(trainer.model, trainer.objectives, trainer.recipe, place)
        averaged = trainer.evaluate()
        result = {
            "name": experiment.name,
            "question": experiment.question,
            "parameters": sum(one.numel() for one in trainer.model.parameters()),
            "steps": steps,
            "tokens": tokens_until(trainer.recipe, steps),
            "seconds": spent,
            "last": last,
            "averaged": averaged,
        }
        say(f"{experiment.name}: {summary(averaged)}")
        write_json(kept, result)
        return result

    def step_seconds(self, experiment: Experiment, place: Place | None = None) -> float:
        """Of a step; measured when asked for the first time, then kept."""
        kept = self.work / "speeds" / f"{digest_of_json(experiment.raw)[:16]}.json"
        if not kept.is_file():
            measured = self._step_seconds(experiment, place or self.place(experiment))
            write_json(kept, {"name": experiment.name, "step_seconds": measured})
            say(f"{experiment.name}: {measured:.3f} s a step")
        return float(read_json(kept)["step_seconds"])

    def place(self, experiment: Experiment) -> Place:
        """A folder for the run, with the packed texts it reads."""
        recipe = experiment.recipe(100)
        packed = self.work / "packed" / digest_of_json(recipe.packing_key())[:16]
        pack_stage(Texts(recipe, self.data, self.corpus), packed)
        return Place(self.work / "runs" / digest_of_json(experiment.raw)[:16], self.data, packed=packed)

    def _trainer(self, experiment: Experiment, place: Place, steps: int) -> Trainer:
        return Trainer(experiment.recipe(steps), place, load_tokenizer(place.texts / "tokenizer"))

    def _step_seconds(self, experiment: Experiment, place: Place) -> float:
        """Of a step on the average over the phases, without compilation."""
        trainer = self._trainer(experiment, place, 1000)
        meter, begin, total = Meter(place.log), 0.0, 0.0
        for phase in trainer.recipe.phases:
            trainer.step = round(begin * 1000)
            trainer.train_step(meter)
            began = time.monotonic()
            for _ in range(TIMED_STEPS):
                trainer.train_step(meter)
            total += (time.monotonic() - began) / TIMED_STEPS * (phase.until - begin)
            begin = phase.until
        return total


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pretraining.experiments", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".pretraining") / "experiments")
    parser.add_argument("--recipe", type=Path, default=HERE / "chorus.toml")
    parser.add_argument("--experiments", type=Path, default=HERE / "experiments.toml")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--time", action="store_true", help="measure how long a step of each takes, and run nothing")
    parser.add_argument("--page", type=Path, help="write what is done to this page, and run nothing")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.data, arguments.corpus, arguments.work)
    seconds, experiments = read_experiments(arguments.experiments, arguments.recipe)
    if arguments.page:
        kept = [bench.result_file(one, seconds) for one in experiments]
        write_page(arguments.page, seconds, arguments.threads, [read_json(file) for file in kept if file.is_file()])
        return 0
    if arguments.time:
        places = [bench.place(one) for one in experiments]
        for experiment, place in zip(experiments, places, strict=True):
            bench.step_seconds(experiment, place)
        return 0
    for experiment in experiments:
        bench.run(experiment, seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
