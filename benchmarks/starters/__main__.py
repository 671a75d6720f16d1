"""`python -m benchmarks.starters`: make all starters, or some; or write what the shipped ones' cards say."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from benchmarks.running import Running, checked, running_service
from benchmarks.starters import __doc__ as about
from benchmarks.starters.articles import kind_split
from benchmarks.starters.page import told, write_page, write_table
from benchmarks.starters.recipes import RECIPES, Recipe
from benchmarks.starters.rows import Split, split_of_sets
from benchmarks.starters.scoring import evaluate
from benchmarks.starters.training import BUDGETS, Trainer
from prompt_store import Evaluation, Version
from prompt_store.blob_format import decode_blob
from prompt_store.starters import FOLDER, read_starters, write_card, write_starter


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--corpus", type=Path, help="folder with the running text, for tasks made from it")
    parser.add_argument("--task", action="append", choices=[recipe.task for recipe in RECIPES], help="only this task")
    parser.add_argument("--budget", choices=BUDGETS, default="rates", help="one try, several rates, all tries")
    parser.add_argument("--steps", type=int, help="steps of each task, for a quick look; the recipe's unless given")
    parser.add_argument("--state", type=Path, help="keep the service's data folder here, to go on after a break")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of a training; unless given all")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write the starters to")
    parser.add_argument("--again", action="store_true", help="train none: ask the shipped ones their test rows again")
    parser.add_argument("--page", type=Path, help="write the cards' figures of --out to this page")
    parser.add_argument("--table", type=Path, help="write their table between its marks in this file (the README)")
    arguments = parser.parse_args(given)
    if arguments.data is None and (arguments.again or not (arguments.page or arguments.table)):
        parser.error("say where the data sets are: --data DIR")
    if arguments.again:
        with serving(CHORUS_THREADS=str(arguments.threads)) as (_, client):
            ask_again(client, wanted(arguments.task, arguments.corpus, None), arguments.data, arguments.corpus)
    elif arguments.data is not None:
        make(arguments)
    starters = read_starters(arguments.out)
    if arguments.page:
        write_page(arguments.page, starters)
    if arguments.table:
        write_table(arguments.table, starters)


def make(given: argparse.Namespace) -> None:
    """Train what is asked for, on a service of its own."""
    recipes = wanted(given.task, given.corpus, given.steps)
    # A trainer takes half of the threads, for a server's sake; nobody asks this one while it learns.
    threads = str(2 * given.threads)
    with serving(given.state, CHORUS_STARTERS="false", CHORUS_THREADS=threads) as (running, client):
        trainer = Trainer(client, given.budget)
        for recipe in recipes:
            print(f"{recipe.task}: {recipe.source}", flush=True)
            make_starter(running, trainer, recipe, rows_of(recipe, given.data, given.corpus), given.out)


def wanted(tasks: Sequence[str] | None, corpus: Path | None, steps: int | None) -> list[Recipe]:
    """The recipes to make. Those of the corpus are left out without one, unless they are asked for by name."""
    found = [recipe for recipe in RECIPES if not tasks or recipe.task in tasks]
    lacking = [recipe.task for recipe in found if recipe.from_corpus and corpus is None]
    if lacking and tasks:
        raise SystemExit(f"{', '.join(lacking)}: made from the corpus, so say where it is: --corpus DIR")
    if lacking:
        print(f"left out, for want of --corpus: {', '.join(lacking)}", flush=True)
    kept = [recipe for recipe in found if recipe.task not in lacking]
    return [replace(recipe, steps=steps) for recipe in kept] if steps else kept


def ask_again(
    client: httpx.Client, recipes: Sequence[Recipe], data: Path, corpus: Path | None, folder: Path = FOLDER
) -> None:
    """Ask the shipped prompts their test rows, and put what comes out in the place of what their cards said of them."""
    shipped = {starter.task: starter for starter in read_starters(folder)}
    for recipe in recipes:
        if starter := shipped.get(recipe.task):
            evaluation = evaluate(client, recipe, rows_of(recipe, data, corpus))
            print(f"{recipe.task}: {told(evaluation)}; was {told(starter.card[-1])}", flush=True)
            write_card(starter, [*starter.card[:-1], evaluation], folder)


@contextmanager
def serving(state: Path | None = None, **environment: str) -> Iterator[tuple[Running, httpx.Client]]:
    with (
        running_service(state, **environment) as running,
        httpx.Client(base_url=running.url, timeout=600) as client,
    ):
        yield running, client


def rows_of(recipe: Recipe, data: Path, corpus: Path | None) -> Split:
    if recipe.from_corpus:
        assert corpus is not None
        return kind_split(corpus)
    return split_of_sets(data, recipe.sets, recipe.test)


def make_starter(running: Running, trainer: Trainer, recipe: Recipe, split: Split, out: Path) -> None:
    """Train, ask the test rows, write blob and record."""
    client, spec, started = trainer.client, recipe.spec(), time.monotonic()
    checked(client.put(f"/v1/tasks/{recipe.task}", json=spec.model_dump(mode="json")))
    number = trainer.train(recipe, split)["result"]["version"]
    view = checked(client.get(f"/v1/tasks/{recipe.task}/versions/{number}"))
    evaluation = evaluate(client, recipe, split)
    print(f"    {time.monotonic() - started:.0f} s; {recipe.test} test: {told(evaluation)}", flush=True)
    blob = (running.data_dir / "blobs" / "blobs" / f"{view['digest']}.safetensors").read_bytes()
    meta, _ = decode_blob(blob)
    version = Version(
        task=recipe.task, task_id="starter", number=number, digest=view["digest"], size_bytes=len(blob),
        state="published", meta=meta, publication="starter", created_at=view["created_at"],
    )  # fmt: skip
    card = [*(Evaluation.model_validate(entry) for entry in view["card"]), evaluation]
    write_starter(version, spec, blob, card=card, folder=out)


if __name__ == "__main__":
    main()
