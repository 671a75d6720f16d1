"""One starter's training through the public API: data sets uploaded, one job or one sweep, followed to its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from benchmarks.running import checked, wait_for_job
from benchmarks.starters.recipes import BATCH, Recipe, Tries
from benchmarks.starters.rows import Row, Split

LONGEST_S = 6 * 3600.0
BUDGETS = ("once", "rates", "wide")
"""One try with the recipe's first of everything; its rates, with the first of the rest; all of its tries."""


def tries_of(recipe: Recipe, budget: str) -> Tries:
    """What a budget leaves of the recipe's tries."""
    if budget == "wide":
        return recipe.tries
    every = recipe.tries
    rates = every.rates[:1] if budget == "once" else every.rates
    return Tries(rates=rates, seeds=every.seeds[:1], inits=every.inits[:1], vectors=every.vectors[:1])


class Trainer:
    """Trains on one service. A method's own learning rate depends on the backbone alone and is asked for once."""

    def __init__(self, client: httpx.Client, budget: str) -> None:
        self.client, self.budget = client, budget
        self._rates: dict[str, float] = {}

    def train(self, recipe: Recipe, split: Split) -> dict[str, Any]:
        """The job, succeeded. Ends the program with the service's words where it did not."""
        for name, rows in ((f"{recipe.task}-train", split.train), (f"{recipe.task}-dev", split.dev)):
            self._upload(name, rows)
        tries = tries_of(recipe, self.budget)
        own = self._own_rate(recipe) if set(tries.rates) != {1.0} else 0.0
        return self._run(recipe.task, body_of(recipe, tries, rows=len(split.train), own_rate=own))

    def _own_rate(self, recipe: Recipe) -> float:
        """What "auto" stands for, from a job of one step whose version answers nobody."""
        method = str(recipe.method["type"])
        if method not in self._rates:
            task = f"{recipe.task}-rate"
            body = {
                "task": task,
                "training_data": {"dataset": f"{recipe.task}-dev"},
                "template": recipe.template,
                "method": dict(recipe.method),
                "hyperparameters": {"n_epochs": 1e-6, "batch_size": 8},
                "publish": {"when": "never"},
            }
            self._rates[method] = float(self._run(task, body)["hyperparameters"]["learning_rate"])
        return self._rates[method]

    def _upload(self, name: str, rows: list[Row]) -> None:
        body = "\n".join(json.dumps(row) for row in rows)
        headers = {"content-type": "application/x-ndjson"}
        checked(self.client.put(f"/v1/datasets/{name}", content=body.encode(), headers=headers))

    def _run(self, task: str, body: Mapping[str, Any]) -> dict[str, Any]:
        accepted = checked(self.client.post("/v1/train", json=dict(body)))
        job = wait_for_job(self.client, accepted["id"], timeout_s=LONGEST_S)
        if job["status"] != "succeeded":
            raise SystemExit(f"{task}: the job ended as {job['status']}: {job['error']}")
        return job


def body_of(recipe: Recipe, tries: Tries, *, rows: int, own_rate: float) -> dict[str, Any]:
    """The request. What is tried in several values goes into the sweep, and nowhere else."""
    listed: dict[str, list[Any]] = {
        "learning_rate": ["auto" if times == 1 else float(f"{times * own_rate:.4g}") for times in tries.rates],
        "seed": list(tries.seeds),
        "init": list(tries.inits),
        "template": [recipe.with_vectors(count) for count in tries.vectors],
    }
    once = {name: values[0] for name, values in listed.items() if len(values) == 1}
    sweep = {name: values for name, values in listed.items() if len(values) > 1}
    numbers = {name: once[name] for name in ("learning_rate", "seed") if name in once}
    body: dict[str, Any] = {
        "task": recipe.task,
        "training_data": {"dataset": f"{recipe.task}-train"},
        "validation_data": {"dataset": f"{recipe.task}-dev"},
        "method": dict(recipe.method) | ({"init": once["init"]} if "init" in once else {}),
        "hyperparameters": {"n_epochs": recipe.steps * BATCH / rows, "batch_size": BATCH} | numbers,
        "metadata": {"data": recipe.source, "licence": recipe.licence},
    }
    if recipe.words is not None:
        body["verbalizer"] = {label: [word] for label, word in recipe.words.items()}
    if "template" in once:
        body["template"] = once["template"]
    return body | ({"sweep": sweep} if sweep else {})
