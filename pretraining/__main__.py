"""`python -m pretraining STAGE`: make a small backbone from text, stage by stage or all of it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from pretraining.card import write_card
from pretraining.errors import PretrainingError
from pretraining.export import export, trained_model
from pretraining.objectives import objectives_of
from pretraining.packing import Texts, check_packed, pack_stage, say, tokenizer_stage
from pretraining.place import Place
from pretraining.recipe import Recipe, read_recipe
from pretraining.scoring import evaluate, summary
from pretraining.tokenizer import load_tokenizer
from pretraining.trainer import Trainer

STAGES = ("tokenizer", "pack", "train", "evaluate", "export", "card", "all")
RECIPE = Path(__file__).with_name("chorus.toml")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    made.add_argument("stage", choices=STAGES)
    made.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    made.add_argument("--corpus", type=Path, required=True, help="folder with the corpora")
    made.add_argument("--work", type=Path, default=Path(".pretraining"), help="folder for what is made (.pretraining)")
    made.add_argument("--packed", type=Path, help="folder where another run packed the same texts (WORK)")
    made.add_argument("--recipe", type=Path, default=RECIPE, help="recipe file (pretraining/chorus.toml)")
    made.add_argument("--out", type=Path, help="folder for a model or its card (WORK/export[-OBJECTIVE or -STEP])")
    made.add_argument("--prompts", type=Path, help="starter prompts tuned on the export, for its card")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads (as many as cores)")
    made.add_argument("--nice", type=int, default=0, help="be that much nicer to other processes, up to 19")
    made.add_argument("--device", default="auto", help="cpu, cuda, or auto (cuda if there is one)")
    made.add_argument("--until", type=int, help="stop training after this step")
    one = made.add_mutually_exclusive_group()
    one.add_argument("--after", metavar="OBJECTIVE", help="evaluate and export the model that had learnt this so far")
    one.add_argument("--at", type=int, metavar="STEP", help="evaluate and export the model of a step that was kept")
    made.add_argument("--last", action="store_true", help="evaluate and export the last weights, not their average")
    return made


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    os.nice(arguments.nice)
    os.environ.setdefault("RAYON_NUM_THREADS", str(arguments.threads))  # the tokenizer's threads
    torch.set_num_threads(arguments.threads)
    try:
        recipe = read_recipe(arguments.recipe)
        for stage in STAGES[1:-1] if arguments.stage == "all" else (arguments.stage,):
            if not run_stage(stage, recipe, arguments):
                say(f"stopped in stage {stage}; the same command goes on")
                break
    except PretrainingError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def run_stage(stage: str, recipe: Recipe, arguments: argparse.Namespace) -> bool:
    """Whether the stage came to its end. Raises PretrainingError if it cannot be done."""
    place = Place(arguments.work, arguments.data, device_for(arguments.device), arguments.packed)
    averaged, after, at = not arguments.last, arguments.after, arguments.at
    if stage in ("tokenizer", "pack"):
        pack(stage, Texts(recipe, place.data, arguments.corpus), place)
    elif stage == "train":
        if place.packed:
            check_packed(Texts(recipe, place.data, arguments.corpus), place.packed)
        return Trainer(recipe, place, load_tokenizer(place.texts / "tokenizer")).run(arguments.until)
    elif stage == "evaluate":
        model, step = trained_model(recipe, place, averaged=averaged, after=after, at=at)
        objectives = objectives_of(recipe, load_tokenizer(place.texts / "tokenizer"))
        result = evaluate(model.to(place.device), objectives, recipe, place)
        say(f"step {step}: {summary(result)}")
    elif stage == "export":
        out = arguments.out or exported(place, after, at)
        say(f"written to {export(recipe, place, out, averaged=averaged, after=after, at=at)}")
    else:
        say(f"written to {card(recipe, place, arguments)}")
    return True


def exported(place: Place, after: str | None, at: int | None) -> Path:
    part = after or at
    return place.work / (f"export-{part}" if part else "export")


def card(recipe: Recipe, place: Place, arguments: argparse.Namespace) -> Path:
    """Of the model in `--out` where there is one, else of the export; into `--out`, else beside the weights."""
    out, model = arguments.out, exported(place, arguments.after, arguments.at)
    if out and (out / "provenance.json").is_file():
        model = out
    return write_card(recipe, place, model, out or model, prompts=arguments.prompts)


def pack(stage: str, texts: Texts, place: Place) -> None:
    """What another run has packed is looked at, never changed."""
    if place.packed:
        check_packed(texts, place.packed)
    elif stage == "tokenizer":
        tokenizer_stage(texts, place.work)
    else:
        pack_stage(texts, place.work)


def device_for(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


if __name__ == "__main__":
    sys.exit(main())
